//! What has come of a file: a list of its blocks beside it, which a killed run leaves whole. An entry is the number of a block that is there, or, with
//! [`GONE`], of one that is not there any more.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

/// How a journal begins.
const MAGIC: &[u8] = b"yuan-hub 2\n";
/// Of a block that was taken back.
const GONE: u32 = 1 << 31;

/// The blocks of a file. An entry is written once its block is.
#[derive(Debug)]
pub struct Journal {
    file: File,
    there: Vec<bool>,
}

impl Journal {
    /// The journal of a file of so many blocks, of which `identity` says which it is. One of another file is begun anew.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path, identity: &str, blocks: usize) -> io::Result<Self> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(mut file) => drop(file.read_to_end(&mut bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let head = [MAGIC, identity.as_bytes(), b"\n"].concat();
        let mut there = vec![false; blocks];
        if let Some(entries) = bytes.strip_prefix(&head[..]) {
            // A last entry that is not whole is none.
            let (entries, _) = entries.as_chunks::<4>();
            for entry in entries {
                let entry = u32::from_le_bytes(*entry);
                if let Some(block) = there.get_mut((entry & !GONE) as usize) {
                    *block = entry & GONE == 0;
                }
            }
            let whole = (head.len() + entries.len() * 4) as u64;
            let file = OpenOptions::new().write(true).open(path)?;
            file.set_len(whole)?;
            drop(file);
        } else {
            std::fs::write(path, head)?;
        }
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self { file, there })
    }

    /// Which blocks were there when it was opened.
    pub fn there(&self) -> &[bool] {
        &self.there
    }

    /// This block is there.
    ///
    /// # Errors
    /// Those of the system.
    pub fn add(&mut self, block: usize) -> io::Result<()> {
        self.file.write_all(&(block as u32).to_le_bytes())
    }

    /// This block is not there any more.
    ///
    /// # Errors
    /// Those of the system.
    pub fn take_back(&mut self, block: usize) -> io::Result<()> {
        self.file.write_all(&(block as u32 | GONE).to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_and_half_an_entry_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        let mut journal = Journal::open(&path, "a 10", 5).unwrap();
        journal.add(3).unwrap();
        journal.add(0).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([4, 0, 0]);
        std::fs::write(&path, bytes).unwrap();
        let mut journal = Journal::open(&path, "a 10", 5).unwrap();
        assert_eq!(journal.there(), [true, false, false, true, false]);
        journal.add(4).unwrap();
        journal.take_back(3).unwrap();
        journal.take_back(0).unwrap();
        journal.add(0).unwrap();
        assert_eq!(Journal::open(&path, "a 10", 5).unwrap().there(), [true, false, false, false, true]);
        assert_eq!(Journal::open(&path, "b 10", 5).unwrap().there(), [false; 5], "of another file");
    }
}
