"""What SUM is compared with, one method a file."""
