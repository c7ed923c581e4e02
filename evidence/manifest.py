"""What a manifest demands, in the words of `evidence`: one translation for all who verify by a manifest. Pure."""

from __future__ import annotations

from evidence.policy import Expected, ImageRule
from evidence.verify import TcbRules
from topology.manifest import Manifest

COORDINATORS = "coordinator"
"""The group name that means the coordinators' app."""


def expected(manifest: Manifest, group: str) -> Expected:
    """What the evidence of a CVM of `group` must show. KeyError for a group that the manifest does not have."""
    app = manifest.coordinators if group == COORDINATORS else manifest.groups[group]
    return Expected(
        app_id=app.app_id,
        compose_hashes=app.compose_hashes,
        key_provider_name=manifest.key_provider.name,
        key_provider_id=manifest.key_provider.id,
        os_images=tuple(
            ImageRule(
                os_image_hash=image.os_image_hash,
                mrtd=image.mrtd,
                rtmr0=image.rtmr0,
                rtmr1=image.rtmr1,
                rtmr2=image.rtmr2,
                development=image.development,
            )
            for image in manifest.os_images
        ),
        allow_development_images=manifest.tcb.allow_development_images,
        revoked=frozenset(each.text for each in manifest.revoked),
    )


def tcb_rules(manifest: Manifest) -> TcbRules:
    """Which platform states are good enough."""
    return TcbRules(
        allowed_statuses=manifest.tcb.allowed_statuses,
        rejected_advisories=manifest.tcb.rejected_advisories,
        min_evaluation_data_number=manifest.tcb.min_evaluation_data_number,
    )
