"""A trained model out into the world, and back: files that other tools read.

```python
from sumlib.model import load_sum
from sumlib.model.export import export_model, import_model

model = load_sum("sum.safetensors")
export_model(model, "leaves.pth", "pth", task=1)          # any tool that takes SAM's own checkpoints
export_model(model, "leaves-hf", "huggingface", task=1)   # transformers: SamModel.from_pretrained
export_model(model, "leaves-onnx", "onnx", task=1)        # annotation tools: encoder.onnx, decoder.onnx
export_model(model, "leaves.safetensors", "safetensors")  # sumlib: all tasks, any architecture
export_model(model, "leaves-adapter.safetensors", "adapter", base="sam_vit_b_01ec64.pth")  # only the change

again = import_model("leaves-adapter.safetensors", base="sam_vit_b_01ec64.pth")
```
"""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "write": ["FORMS", "export_model"],
        "read": ["import_model"],
        "adapter": ["apply_adapter"],
        "plain": ["ExportError"],
    },
)
