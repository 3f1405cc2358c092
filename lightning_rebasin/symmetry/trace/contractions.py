"""The operations that contract two operands: where the units of a network can be observed."""

from __future__ import annotations

from collections.abc import Mapping

#: Operations that contract two operands, with the names of the operands.  They are counted to find them again.
CONTRACTIONS: Mapping[str, tuple[str, str]] = {
    "aten.mm": ("self", "mat2"),
    "aten.bmm": ("self", "mat2"),
    "aten.mv": ("self", "vec"),
    "aten.dot": ("self", "tensor"),
    "aten.addmm": ("mat1", "mat2"),
    "aten.addmv": ("mat", "vec"),
    "aten.baddbmm": ("batch1", "batch2"),
    "aten.convolution": ("input", "weight"),
    "aten._scaled_dot_product_flash_attention_for_cpu": ("query", "key"),
    "aten._scaled_dot_product_flash_attention": ("query", "key"),
    "aten._scaled_dot_product_efficient_attention": ("query", "key"),
    "aten._scaled_dot_product_cudnn_attention": ("query", "key"),
}
