"""The search for translations: generate(), greedy search in fixed shapes, CTranslate2, and one interface of engines.

Imports nothing, so that a command can tell an export from a model at once.
"""

# The file of an export; a folder with it is one.
RECORD_NAME = "mtloop_export.json"
