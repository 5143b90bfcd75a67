"""The bundle: one folder that holds all a generation needs.

Its files:

    manifest    what the bundle says of itself: the schema of ``manifest.json``
    components  names of components, and of inputs that more than one room speaks of
    store       opening, finding and writing bundles
    checks      whether an opened bundle is what its manifest says
"""

from kdrt.bundle.manifest import (
    Baked,
    BakedLora,
    Component,
    Dtype,
    EdmFacts,
    GraphName,
    ImageEncoderFacts,
    IpAdapterFacts,
    LatentFacts,
    Manifest,
    OrtGraphs,
    Precision,
    PredictionType,
    SchedulerFacts,
    TensorInfo,
    TextEncoderFacts,
    Verification,
)
from kdrt.bundle.store import (
    MANIFEST,
    Bundle,
    bundle_names,
    bundle_path,
    check_new_bundle,
    config_file,
    folder_name,
    new_bundle,
    open_bundle,
    sha256,
    write_manifest,
)

__all__ = [
    "MANIFEST",
    "Baked",
    "BakedLora",
    "Bundle",
    "Component",
    "Dtype",
    "EdmFacts",
    "GraphName",
    "ImageEncoderFacts",
    "IpAdapterFacts",
    "LatentFacts",
    "Manifest",
    "OrtGraphs",
    "Precision",
    "PredictionType",
    "SchedulerFacts",
    "TensorInfo",
    "TextEncoderFacts",
    "Verification",
    "bundle_names",
    "bundle_path",
    "check_new_bundle",
    "config_file",
    "folder_name",
    "new_bundle",
    "open_bundle",
    "sha256",
    "write_manifest",
]
