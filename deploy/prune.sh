#!/bin/sh
# Removes files from an environment that a server never imports: tests and their data, which are two
# thirds of onnx; ONNX Runtime's converters of language models; the trainer, which needs torch.
set -eu

cd "$1"/lib/python3*/site-packages
find . -depth -type d \( -name test -o -name tests -o -name testsuite \) -exec rm -r {} +
rm -r onnxruntime/transformers topwork_trainer "$1"/bin/topwork-train
