"""The page of planted faults, from benchmarks/results/verify-campaign.json and that of calibrated bundles."""

from typing import Any

from tools.docs.tables import read_result, table

RESULTS = ("verify-campaign", "verify-campaign-calibrated")


def planted_faults_page() -> str:
    """Return the page."""
    results = [read_result(name) for name in RESULTS]
    planted: list[dict[str, Any]] = [one for result in results for one in result["planted"]]
    measured = "; ".join(f"{result['date']} on {result['cpu']}: `{result['command']}`" for result in results)
    bundles = list(dict.fromkeys(one["bundle"] for one in planted))
    rows = [
        [fault, *(cell([one for one in planted if (one["fault"], one["bundle"]) == (fault, name)]) for name in bundles)]
        for fault in dict.fromkeys(one["fault"] for one in planted)
    ]
    rows.append(["all", *(cell([one for one in planted if one["bundle"] == name]) for name in bundles)])
    missed = [one for one in planted if not one["found"]]
    misnamed = [one for one in planted if one["found"] and not one["named"]]
    return f"""# Planted faults

Measured on {measured}. Each fault is planted at a random place in a bundle of the
small checkpoint. Then the manifest's hashes of files are written anew, so that the files pass for what was exported, and the
bundle is verified. The checksums that calibration leaves in the manifest stay: a smaller fault of calibrated weights is found by
them alone.

{len(planted)} were planted, {len(planted) - len(missed)} found, {sum(one["named"] for one in planted)} named rightly: the last
sentence of `ernie-verify` says what was planted, by the patterns in `tools/faults`. A cell has found and named, of those planted;
it is empty where the fault does not apply: only int8 and int4 have quantized groups, and they decode with the prefill graph on a
CPU.

{table(["fault", *bundles], rows)}

## Not found

{sentences(missed, "failures")}

## Found, but named otherwise

{sentences(misnamed, "diagnosis")}
"""


def cell(planted: list[dict[str, Any]]) -> str:
    """Return how many were found and named, of how many."""
    if not planted:
        return ""
    found, named = (sum(one[what] for one in planted) for what in ("found", "named"))
    return f"{found}, {named} of {len(planted)}"


def sentences(planted: list[dict[str, Any]], what: str) -> str:
    """Return a table of faults with what was said of them."""
    if not planted:
        return "None."
    rows = [[one["bundle"], one["fault"], f"`{one['place']}`", one[what] or "nothing"] for one in planted]
    return table(["bundle", "fault", "place", "said"], rows)
