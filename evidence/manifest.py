"""What a manifest demands, in the words of `evidence`: one translation for all who verify by a manifest. Pure."""

from __future__ import annotations

from evidence.policy import Expected, ImageRule, ReferenceRule, TcbRules
from topology.manifest import COORDINATORS, Manifest
from topology.references import Reference


def expected(manifest: Manifest, group: str) -> Expected:
    """What the evidence of a CVM of `group` must show. KeyError for a group that the manifest does not have."""
    app = manifest.coordinators if group == COORDINATORS else manifest.groups[group]
    return Expected(
        app_id=app.app_id,
        compose_hashes=app.compose_hashes,
        references=tuple(map(_rule, manifest.references)),
        revoked=frozenset(each.text for each in manifest.revoked),
    )


def _rule(reference: Reference) -> ReferenceRule:
    return ReferenceRule(
        name=reference.name,
        key_provider_name=reference.key_provider.name,
        key_provider_id=reference.key_provider.id,
        os_images=tuple(
            ImageRule(
                os_image_hash=image.os_image_hash,
                mrtd=image.mrtd,
                rtmr0=image.rtmr0,
                rtmr1=image.rtmr1,
                rtmr2=image.rtmr2,
                development=image.development,
            )
            for image in reference.os_images
        ),
        allow_development_images=reference.tcb.allow_development_images,
        tcb=TcbRules(
            allowed_statuses=reference.tcb.allowed_statuses,
            rejected_advisories=reference.tcb.rejected_advisories,
            min_evaluation_data_number=reference.tcb.min_evaluation_data_number,
            grace_until=reference.tcb.grace_until,
        ),
        devices=reference.devices,
    )
