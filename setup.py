"""The only home of autoseg's metadata."""

from pathlib import Path

from setuptools import find_packages, setup

COMMANDS = (
    "plan_and_preprocess",
    "fingerprint",
    "plan",
    "preprocess",
    "train",
    "race",
    "predict",
    "evaluate",
    "architectures",
    "demo",
    "select",
    "ensemble",
    "postprocess",
    "export",
    "install",
    "move_plan",
    "calibrate",
    "plot",
    "doctor",
    "import",
)
# A word of Python cannot be the name of a function.
FUNCTIONS = {"import": "import_"}

ONNX = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
TENSORBOARD = ["tensorboard>=2.16"]

setup(
    name="autoseg",
    version="0.1.0",
    description="Self-configuring segmentation of medical images: plan, train and use networks with three commands",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["autoseg", "autoseg.*"]),
    package_data={"autoseg": ["py.typed"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        # 2.9 is several times slower in 3D convolutions with half precision.
        "torch>=2.4,!=2.9.*",
        "numpy>=1.26",
        "scipy>=1.11",
        "SimpleITK>=2.3",
        "scikit-image>=0.22",
        "batchgenerators>=0.25",
        "acvl-utils>=0.2.3",
        "connected-components-3d>=3.14",
        "blosc2>=3.0",
        "safetensors>=0.4.3",
        "cattrs>=23.2",
        "matplotlib>=3.8",
        "pillow>=10",
        "tifffile>=2023.9",
        "psutil>=5.9",
    ],
    extras_require={
        "onnx": ONNX,
        "tensorboard": TENSORBOARD,
        "mlflow": ["mlflow>=2.14"],
        "wandb": ["wandb>=0.19"],
        "dicom": ["pydicom>=3", "highdicom>=0.24"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "nibabel>=5.2",
            "scikit-learn>=1.4",
            *ONNX,
            *TENSORBOARD,
        ],
        "dev": ["ruff>=0.8", "mypy>=1.11", "build>=1.2", "wheel>=0.43"],
    },
    entry_points={
        "console_scripts": [
            "autoseg=autoseg.cli.main:main",
            *(f"autoseg_{verb}=autoseg.cli.main:{FUNCTIONS.get(verb, verb)}" for verb in COMMANDS),
        ]
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
)
