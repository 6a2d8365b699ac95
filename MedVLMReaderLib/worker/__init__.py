"""The reader in another process, for programs that must not import torch or must not wait.

`client.Client` asks and is told by events; `blocking.WorkerReader` waits, and can be used like a `reader.Reader`;
`python -m MedVLMReaderLib.worker` is the other side. docs/worker.md has the protocol.
"""
