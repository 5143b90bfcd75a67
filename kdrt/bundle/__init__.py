"""The bundle: one folder that holds everything a generation needs.

Its files:

    manifest            what the bundle says of itself: the schema of ``manifest.json``
    bounded             the types of its values
    ip_adapter_facts    its facts of IP-Adapters
    quantization_facts  its facts of quantised networks
    components          names of components, and of inputs that more than one room speaks of
    store               finding and opening bundles
    writing             new bundles in the place of old ones, and the removal of bundles
    checks              whether an opened bundle is what its manifest says
    control_checks      whether its ControlNets and T2I-Adapters fit its UNet
"""

from kdrt.bundle.bounded import Dtype
from kdrt.bundle.ip_adapter_facts import ImageEncoderFacts, IpAdapterFacts, IpAdapterKind
from kdrt.bundle.manifest import (
    MOST_CONTROLS,
    MOST_UPSCALERS,
    Baked,
    BakedLora,
    Component,
    ControlFacts,
    EdmFacts,
    GraphName,
    LatentFacts,
    Manifest,
    OrtGraphs,
    Precision,
    PredictionType,
    SchedulerFacts,
    TensorInfo,
    TextEncoderFacts,
    UpscalerFacts,
    Verification,
)
from kdrt.bundle.quantization_facts import (
    QuantizationFacts,
    QuantizationFormat,
    QuantizationLoss,
    StepLoss,
)
from kdrt.bundle.store import (
    MANIFEST,
    Bundle,
    bundle_names,
    bundle_path,
    config_file,
    folder_name,
    open_bundle,
    read_manifest,
)
from kdrt.bundle.writing import (
    changed_bundle,
    check_new_bundle,
    check_removable,
    link,
    new_bundle,
    remove_bundle,
    sha256,
    write_manifest,
)

__all__ = [
    "MANIFEST",
    "MOST_CONTROLS",
    "MOST_UPSCALERS",
    "Baked",
    "BakedLora",
    "Bundle",
    "Component",
    "ControlFacts",
    "Dtype",
    "EdmFacts",
    "GraphName",
    "ImageEncoderFacts",
    "IpAdapterFacts",
    "IpAdapterKind",
    "LatentFacts",
    "Manifest",
    "OrtGraphs",
    "Precision",
    "PredictionType",
    "QuantizationFacts",
    "QuantizationFormat",
    "QuantizationLoss",
    "SchedulerFacts",
    "StepLoss",
    "TensorInfo",
    "TextEncoderFacts",
    "UpscalerFacts",
    "Verification",
    "bundle_names",
    "bundle_path",
    "changed_bundle",
    "check_new_bundle",
    "check_removable",
    "config_file",
    "folder_name",
    "link",
    "new_bundle",
    "open_bundle",
    "read_manifest",
    "remove_bundle",
    "sha256",
    "write_manifest",
]
