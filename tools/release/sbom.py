"""What the programs are made of, for programs that look for known weaknesses: CycloneDX 1.5."""

import datetime
import json
import uuid

import facts

# A name space of our own, so that the same release has the same number.
SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "pkg:cargo/yuan")


def component(crate: facts.Crate) -> dict:
    told = {
        "type": "library",
        "bom-ref": crate.purl,
        "name": crate.name,
        "version": crate.version,
        "scope": "required",
        "licenses": [{"expression": crate.licence.replace("/", " OR ")}],
        "purl": crate.purl,
    }
    if crate.checksum:
        told["hashes"] = [{"alg": "SHA-256", "content": crate.checksum}]
    if crate.repository:
        told["externalReferences"] = [{"type": "vcs", "url": crate.repository}]
    return told


def of(triple: str) -> str:
    crates = facts.crates(triple)
    purls = {crate.id: crate.purl for crate in crates}
    release = f"yuan-{facts.version()}-{triple}"
    root = {
        "type": "application",
        "bom-ref": release,
        "name": "yuan",
        "version": facts.version(),
        "licenses": [{"expression": facts.LICENCE}],
    }
    time = datetime.datetime.fromtimestamp(facts.epoch(), datetime.timezone.utc)
    shipped = [crate.purl for crate in crates if crate.name in facts.SHIPPED]
    told = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(SPACE, f'{release} {facts.commit()} {facts.epoch()}')}",
        "version": 1,
        "metadata": {"timestamp": time.isoformat(timespec="seconds").replace("+00:00", "Z"), "component": root},
        "components": [component(crate) for crate in crates],
        "dependencies": [{"ref": release, "dependsOn": sorted(shipped)}]
        + [{"ref": crate.purl, "dependsOn": sorted(purls[pkg] for pkg in crate.needs)} for crate in crates],
    }
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"
