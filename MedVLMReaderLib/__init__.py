"""MedVLM Reader: reads a scan with a medical vision-language model on the user's own machine."""

__version__ = "0.1.0"


class ReaderError(Exception):
    """Something that the user can mend; the message says what happened and what to do, and is shown as it is."""
