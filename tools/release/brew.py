"""A formula for Homebrew on Linux, whose archives these are."""

import hashlib
import pathlib

import facts

# Homebrew's names of the processors.
PROCESSORS = {"x86_64-linux": "intel", "aarch64-linux": "arm"}


def formula(archives: dict[str, pathlib.Path], url: str) -> str:
    parts = [
        f"""    on_{PROCESSORS[name]} do
      url "{url.rstrip('/')}/{archive.name}"
      sha256 "{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    end
"""
        for name, archive in sorted(archives.items())
    ]
    return f"""class Yuan < Formula
  desc "{facts.DESCRIPTION}"
  version "{facts.version()}"
  license any_of: ["MIT", "Apache-2.0"]

  on_linux do
{"".join(parts)}  end

  def install
    prefix.install Dir["*"]
  end

  test do
    assert_match version.to_s, shell_output("#{{bin}}/yuan --version")
    system bin/"yuan", "doctor", "--quick"
  end
end
"""
