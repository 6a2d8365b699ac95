"""Many studies: each kept in a folder of its own, read on one machine or many, gone on with when interrupted."""

from MedVLMReaderLib.batch.desk import Answers, Desk, Outcome, Settings, Study, read_study
from MedVLMReaderLib.batch.rounds import Progress, Report, Rounds, check_settings, earlier_settings, here, read_all

__all__ = [
    "Answers", "Desk", "Outcome", "Progress", "Report", "Rounds", "Settings", "Study", "check_settings",
    "earlier_settings", "here", "read_all", "read_study",
]  # fmt: skip
