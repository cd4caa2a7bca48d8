"""Writes a quantised GGUF as BF16, so that llama.cpp runs the weights that the appliance imports.

Matrices become BF16; norms, which llama.cpp keeps in F32, are rounded to BF16 first.
Usage: python bf16.py FROM.gguf TO.gguf
"""

import sys

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

BF16 = GGMLQuantizationType.BF16

source, target = sys.argv[1:]
reader = GGUFReader(source)
writer = GGUFWriter(target, reader.fields["general.architecture"].contents())

for name, field in reader.fields.items():
    # The writer writes these itself.
    if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
        continue
    kind = field.types[0]
    element = field.types[-1] if kind == GGUFValueType.ARRAY else None
    writer.add_key_value(name, field.contents(), kind, element)
writer.add_file_type(LlamaFileType.MOSTLY_BF16)

for tensor in reader.tensors:
    rounded = quantize(dequantize(tensor.data, tensor.tensor_type), BF16)
    if len(tensor.shape) == 1:
        writer.add_tensor(tensor.name, dequantize(rounded, BF16))
    else:
        writer.add_tensor(tensor.name, rounded, raw_dtype=BF16)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
