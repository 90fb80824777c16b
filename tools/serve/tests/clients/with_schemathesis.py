"""Checks `yuan serve` with the package `schemathesis`, which asks all that `/openapi.json` says can be asked.

    python3 -m pip install --target target/schemathesis schemathesis
    PYTHONPATH=$PWD/target/schemathesis python3 tools/serve/tests/clients/with_schemathesis.py target/release/yuan [EXAMPLES [SEED]]

No reply may be a mistake of the server, and each must be as it is described. Answers are short, since whatever is asked is asked with a small context.
"""

import subprocess
import sys
import tempfile

from server import serve

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
]

if __name__ == "__main__":
    examples, seed = (sys.argv[2:3] or ["10"])[0], (sys.argv[3:4] or ["1"])[0]
    with serve(sys.argv[1], "--context", "64") as address:
        # OpenAI's addresses without /v1 are the same ones, and the events of /experts have no end. The requests are the same each time.
        limits = ["--exclude-path-regex", "^/(chat|completions|embeddings|responses|models|experts)", "--max-examples", examples, "--seed", seed, "--phases", "coverage,fuzzing"]
        program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
        asked = [sys.executable, "-c", program, "run", address + "/openapi.json", "--checks", ",".join(CHECKS), *limits]
        # It writes what it has learned into the folder where it runs.
        with tempfile.TemporaryDirectory() as folder:
            found = subprocess.run(asked, cwd=folder).returncode
        assert found == 0, "schemathesis has found something"
