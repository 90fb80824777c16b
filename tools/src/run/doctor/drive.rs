//! The folder of models: which there are, whether more can be kept there, and how fast its drive is.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::json;
use yuan::{
    container::Container,
    error::Error,
    files::{NewFile, free_bytes},
    machine::drive::{Speed, speed_of_file},
};
use yuan_tools::{
    console::{busy, explain, size, stopped},
    models::{coming, folder, list},
};

use super::{READ, finding::Finding};

/// Bytes of a file that is written to measure a drive.
const FRESH: u64 = 256 << 20;
/// What stays free beside it.
const SPARE: u64 = 1 << 30;
/// A file that says enough of its drive.
const ENOUGH: u64 = 64 << 20;
/// Free space below which the M32 finds no room.
const ROOM: u64 = 30_000_000_000;
/// GB a second below which streaming is slow.
const SLOW: f64 = 0.5;

/// The folder, its models and, where `measured`, its drive.
pub fn models(measured: bool) -> Vec<Finding> {
    let folder = match folder() {
        Ok(folder) => folder,
        Err(error) => {
            return vec![Finding::wrong("models", explain(&error), "set YUAN_MODELS to a folder for models")];
        }
    };
    let mut findings = Vec::new();
    let place = existing(&folder);
    findings.push(writable(&folder, &place));
    let found = list().and_then(|found| Ok((found, coming()?)));
    let (found, coming) = match found {
        Ok(found) => found,
        Err(error) => {
            findings.push(Finding::wrong(
                "models",
                explain(&error),
                "make it a folder that you may read, or name another in YUAN_MODELS",
            ));
            return findings;
        }
    };
    let mut sound: Vec<(u64, PathBuf)> = Vec::new();
    for model in &found {
        let bytes = fs::metadata(&model.path).map_or(0, |file| file.len());
        match Container::open(&model.path) {
            Ok(_) => sound.push((bytes, model.path.clone())),
            Err(error) => {
                let remedy = match error {
                    Error::BadFile { .. } | Error::Checksum { .. } | Error::Tensors { .. } => {
                        format!("`yuan rm {}`, then `yuan pull {}`", model.name, model.name)
                    }
                    _ => "see the reason; the file itself may be sound".to_owned(),
                };
                findings.push(Finding::wrong(
                    "models",
                    format!("{} does not open: {error}", model.name),
                    remedy,
                ));
            }
        }
    }
    let names = |entries: &[yuan_tools::models::Entry]| {
        entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>()
    };
    let says = match found.len() {
        0 => "none yet; `yuan pull m32` fetches one, and a command may name any file".to_owned(),
        _ => {
            format!("{} ({} in all)", names(&found).join(", "), size(sound.iter().map(|model| model.0).sum()))
        }
    };
    let facts = json!({ "folder": folder, "models": names(&found), "coming": names(&coming) });
    findings.push(Finding::ok("models", says).with(facts));
    for model in &coming {
        let says = format!("{} has not come whole", model.name);
        findings.push(Finding::note(
            "models",
            says,
            format!("`yuan pull {}` goes on where it has stopped", model.name),
        ));
    }
    if measured && !stopped() {
        let largest = sound.into_iter().max().filter(|(bytes, _)| *bytes >= ENOUGH);
        findings.push(match largest {
            Some((_, path)) => speed(&path, &format!("read of {}", path.display())),
            None => fresh(&place, FRESH),
        });
    }
    findings
}

/// The folder, or the nearest above it that is there.
fn existing(folder: &Path) -> PathBuf {
    let there = folder.ancestors().find(|above| above.is_dir());
    there.filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Whether models can be kept there, and how much room there is.
fn writable(folder: &Path, place: &Path) -> Finding {
    let free = free_bytes(place).ok();
    let facts = json!({ "folder": folder, "free": free });
    let room = free.map_or_else(String::new, |free| format!("; {} are free", size(free)));
    let says = format!("{}{room}", folder.display());
    let finding = match NewFile::create(&place.join("yuan-doctor"), 0) {
        Err(error) => Finding::note(
            "folder",
            format!("{says}; `yuan pull` cannot keep models there: {error}"),
            "make it writable for you, or name another folder in YUAN_MODELS",
        ),
        Ok(_) if free.is_some_and(|free| free < ROOM) => Finding::note(
            "folder",
            format!("{says}, and Yuan2.0-M32 takes 24 GB, and more while it comes"),
            "free some space, or name a folder on a larger drive in YUAN_MODELS",
        ),
        Ok(_) => Finding::ok("folder", says),
    };
    finding.with(facts)
}

/// The speed of the drive by a new file, which is gone afterwards.
fn fresh(place: &Path, bytes: u64) -> Finding {
    let measured = {
        let _busy = busy("writing a file to measure the drive");
        write_fresh(place, bytes).and_then(|mut file| {
            let path = file.flushed()?.to_owned();
            Ok((file, path))
        })
    };
    match measured {
        // The file is removed when it is dropped.
        Ok((_file, path)) if !stopped() => {
            speed(&path, &format!("read of a fresh file in {}", place.display()))
        }
        Ok(_) => Finding::ok("drive", "not measured: stopped"),
        Err(error) => Finding::note(
            "drive",
            format!("its speed was not measured: {error}"),
            "`yuan doctor MODEL` measures the drive that a model is on",
        ),
    }
}

/// Random bytes, which no file system makes smaller.
fn write_fresh(place: &Path, bytes: u64) -> yuan::Result<NewFile> {
    let mut file = NewFile::create(&place.join("yuan-doctor"), bytes + SPARE)?;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut piece = vec![0; 1 << 20];
    for _ in 0..bytes / piece.len() as u64 {
        if stopped() {
            break;
        }
        for word in piece.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&piece).map_err(|error: io::Error| file.failed(error))?;
    }
    Ok(file)
}

/// The speed of a file's drive.
pub fn speed(path: &Path, what: &str) -> Finding {
    let measured = {
        let _busy = busy("measuring the drive");
        speed_of_file(path, READ)
    };
    match measured {
        Ok(speed) => judge(speed, what),
        Err(error) => Finding::wrong(
            "drive",
            format!("its speed was not measured: {error}"),
            "see whether the file is whole (`yuan-quant verify`), and whether the drive is well (the system's log says)",
        ),
    }
}

fn judge(speed: Speed, what: &str) -> Finding {
    let Speed { gb_per_second, direct } = speed;
    let says = format!("{gb_per_second:.2} GB/s {what}");
    let finding = if !direct {
        let says = format!("{says}, through the page cache, so perhaps from memory");
        Finding::note(
            "drive",
            says,
            "this file system has no direct reads; for models larger than memory keep them on a local drive",
        )
    } else if gb_per_second < SLOW {
        let remedy = "models that fit into memory are fast once they are read; for larger ones use an NVMe drive (YUAN_MODELS names the folder)";
        Finding::note("drive", format!("{says}: slow for models larger than memory"), remedy)
    } else {
        Finding::ok("drive", says)
    };
    finding.with(json!({ "gb_per_second": gb_per_second, "direct": direct }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Mark;

    #[test]
    fn slow_and_uncertain_drives_are_worth_a_word() {
        let mark = |gb_per_second, direct| judge(Speed { gb_per_second, direct }, "x").mark;
        assert_eq!([mark(3.0, true), mark(0.1, true), mark(9.0, false)], [Mark::Ok, Mark::Note, Mark::Note]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_measured_by_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("a/b/c")), folder.path());
        assert_eq!(existing(folder.path()), folder.path());
        assert_eq!(existing(Path::new("no-such-folder")), Path::new("."));
    }

    #[test]
    fn what_was_written_to_measure_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let finding = fresh(folder.path(), 8 << 20);
        assert!(finding.facts["gb_per_second"].as_f64().is_some_and(|speed| speed > 0.0), "{finding:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let refused = fresh(&folder.path().join("none"), 8 << 20);
        assert!(refused.mark == Mark::Note && refused.remedy.is_some(), "{refused:?}");
    }
}
