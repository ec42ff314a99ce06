"""Record in a bundle's manifest that it was verified: `--require-verified` refuses others."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ernie_export.common.atomic_file import write_atomically
from ernie_export.common.manifest import NAME, Manifest
from ernie_export.common.manifest_sections import VerificationInfo
from ernie_export.common.version import __version__


def record_verification(bundle: Path, report: str, passed: bool) -> None:
    """Write the record, or remove one where the bundle did not pass.

    Args:
        bundle: The bundle.
        report: The report as JSON.
        passed: Whether nothing was past the limits.

    Raises:
        CannotWrite: The manifest cannot be written.
    """
    manifest = Manifest.read(bundle)
    digest = hashlib.sha256(report.encode()).hexdigest()
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    record = VerificationInfo(__version__, today, manifest.files_sha256, digest) if passed else None
    write_atomically(bundle / NAME, replace(manifest, verification=record).text().encode(), "the manifest")
