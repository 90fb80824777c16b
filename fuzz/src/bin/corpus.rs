//! `corpus unpack FOLDER` writes the inputs of every target to `FOLDER/TARGET`: its seeds, and what was kept of campaigns (`corpora/TARGET.zip`).
//! `corpus pack FOLDER` keeps what is there, in the place of what was kept.

use std::{
    env,
    error::Error,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

// No target: what the compiler has put into the libraries for libFuzzer is linked with it.
libfuzzer_sys::fuzz_target!(|_data: &[u8]| {});

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [what, folder] = &arguments[..] else { return Err("usage: corpus unpack|pack FOLDER".into()) };
    for (target, seeds) in yuan_fuzz::TARGETS {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(target).with_extension("zip");
        let folder = PathBuf::from(folder).join(target);
        match what.to_str() {
            Some("unpack") => unpack(&folder, &kept, seeds())?,
            Some("pack") => pack(&folder, &kept)?,
            _ => return Err("usage: corpus unpack|pack FOLDER".into()),
        }
    }
    Ok(())
}

fn unpack(folder: &Path, kept: &Path, seeds: Vec<yuan_fuzz::Seed>) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    for (i, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(format!("seed-{i}")), seed)?;
    }
    if !kept.exists() {
        return Ok(());
    }
    let mut archive = ZipArchive::new(fs::File::open(kept)?)?;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i)?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        fs::write(folder.join(format!("kept-{i}")), bytes)?;
    }
    Ok(())
}

fn pack(folder: &Path, kept: &Path) -> Result<(), Box<dyn Error>> {
    let entries = fs::read_dir(folder)?.map(|entry| fs::read(entry?.path())).collect::<Result<Vec<_>, _>>();
    let mut inputs = entries?;
    // The same file, in whatever order the system lists them.
    inputs.sort();
    fs::create_dir_all(kept.parent().ok_or("no folder")?)?;
    let mut archive = ZipWriter::new(fs::File::create(kept)?);
    for (i, input) in inputs.iter().enumerate() {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        archive.start_file(i.to_string(), options)?;
        archive.write_all(input)?;
    }
    archive.finish()?;
    Ok(())
}
