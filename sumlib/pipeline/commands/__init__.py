"""The command line `sumlib`: what people do outside notebooks, a file a command."""
