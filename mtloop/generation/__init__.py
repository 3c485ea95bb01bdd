"""Search for translations: transformers' generate, greedy search in fixed shapes, CTranslate2, one interface.

Imports nothing, so that a command can recognize an export without loading torch.
"""

# The file that marks a folder as an export.
RECORD_NAME = "mtloop_export.json"
