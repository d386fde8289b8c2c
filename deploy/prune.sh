#!/bin/sh
# Removes from an environment what a server never imports: tests and their data, two thirds of onnx
# among them; ONNX Runtime's converters of language models; the trainer, which cannot run without torch.
set -eu

cd "$1"/lib/python3*/site-packages
find . -depth -type d \( -name test -o -name tests -o -name testsuite \) -exec rm -r {} +
rm -r onnxruntime/transformers topwork_trainer "$1"/bin/topwork-train
