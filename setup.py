"""What MedVLM Reader is and needs; pyproject.toml has its tools' settings, constraints.txt the tested versions."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "MedVLMReaderLib/__init__.py").read_text(), re.MULTILINE)
README = HERE / "README.md"

# Reads studies, makes studies, keeps and draws readings: no torch here, so that Slicer's own Python may install it.
BASE = [
    "numpy>=2.0",
    "scipy>=1.13",
    "SimpleITK>=2.4",
    "pydicom>=3.0.2",
    "python-gdcm>=3.0.24",
    "pylibjpeg>=2.0",
    "pylibjpeg-openjpeg>=2.4",
    "matplotlib>=3.9",
    "tqdm>=4.66",
    "pillow>=11",
]
MODELS = [
    "torch>=2.10",
    "transformers>=5.5,<6",
    "regex>=2024.4",
    "tokenizers>=0.22",
    "huggingface_hub>=2.0,<3",
    "safetensors>=0.6",
    "monai>=1.5",
]
# The papers' own work: pre-training, fine-tuning, evaluation.
TRAINING = [
    "accelerate>=1.10",
    "bert-score>=0.3.13",
    "einops>=0.8",
    "nltk>=3.9",
    "peft>=0.18",
    "POT>=0.9.6",
    "rouge-score>=0.1.2",
    "sacrebleu>=2.5",
    "tensorboard>=2.20",
]
QUANTISED = ["bitsandbytes>=0.49", "accelerate>=1.10"]
# Reports as PDF, DICOM and FHIR, and sending them
EXPORT = [
    "highdicom>=0.28",
    "fhir.resources>=8.0",
    "reportlab>=4.2",
    "pynetdicom>=3.0",
    "dicomweb-client>=0.60",
    "jsonschema>=4.21",
    "fonttools>=4.50",
]
# Many studies: tables, a cluster, a DICOMweb server
BATCH = ["pyarrow>=18", "fsspec>=2025.3", "ray>=2.50", "dicomweb-client>=0.60"]
# The web site of the documentation
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5"]
TEST = ["pytest>=9", "hypothesis>=6.130", "ruff>=0.14", "mypy>=1.18", "nilearn>=0.12", "nibabel>=5.3", "setuptools>=77"]
# Tests of the Slicer module without Slicer's desktop
SLICER_TESTS = ["slicer-core>=5.13", "PySide6-Essentials>=6.9"]
TEST += [*DOCS, *QUANTISED, *BATCH, *TRAINING, *EXPORT, *SLICER_TESTS, "pypdfium2>=5"]

setup(
    name="medvlmreader",
    version=VERSION[1],
    description="Reads CT and MR scans with medical vision-language models, and shows where the model looked",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="MedVLM Reader contributors",
    license="Apache-2.0",
    license_files=["LICENSE.txt"],
    python_requires=">=3.11,<3.14",
    # Resources/ stands at the top for everybody to see; a wheel carries it inside the library.
    packages=[*find_packages(include=["MedVLMReaderLib", "MedVLMReaderLib.*"]), "MedVLMReaderLib.Resources"],
    package_dir={"MedVLMReaderLib.Resources": "Resources"},
    package_data={"MedVLMReaderLib": ["py.typed"], "MedVLMReaderLib.Resources": ["**/*"]},
    include_package_data=False,
    entry_points={"console_scripts": ["medvlmreader = MedVLMReaderLib.cli:main"]},
    install_requires=BASE,
    extras_require={
        "models": MODELS,
        "quantised": [*MODELS, *QUANTISED],
        "batch": BATCH,
        "export": EXPORT,
        "training": [*MODELS, *TRAINING],
        "all": [*MODELS, *QUANTISED, *BATCH, *EXPORT, *TRAINING],
        "docs": DOCS,
        "slicer-tests": SLICER_TESTS,
        "test": TEST,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
)
