//! Writing a container so that nothing is lost: beside its place, tensor by tensor, with a journal, renamed when whole.
//!
//! A killed run leaves `OUT.partial` and `OUT.journal`. The next run with the same plan and source checks the
//! journalled tensors against their digests and goes on behind them; its file is the same byte for byte.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use blake3::Hash;

use crate::{
    container::write::Writer,
    error::{Error, Result},
    files::{check_name, check_not_read, check_space, put_in_place},
};

/// Bytes that are read at a time when a resumed run checks what is there.
const CHECK_BYTES: usize = 4 << 20;

/// What a finished run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Tensors that an earlier run had written.
    pub resumed: usize,
}

/// Writes the file that `writer` lays out to `path`. `produce(i)` makes the bytes of tensor i; while one tensor is written
/// and hashed the next is made. `progress` hears the bytes of every finished tensor and says whether to go on.
/// Tensors are made in `order`, which names each of them once; what they are and where they lie does not depend on it.
/// `identity` names the source: a journal of another one, or of another order, is not resumed. `inputs` are the files that are read, which are never written over.
///
/// # Errors
/// Those of `produce`; [`Error::Argument`] for a file that is read and for a folder, [`Error::DiskFull`] before anything is written; [`Error::Io`]; [`Error::Cancelled`], which leaves the
/// journal for the next run.
pub fn write(
    path: &Path,
    writer: &Writer,
    identity: &[u8],
    inputs: &[PathBuf],
    order: &[usize],
    produce: &(dyn Fn(usize) -> Result<Vec<u8>> + Sync),
    progress: &dyn Fn(u64) -> bool,
) -> Result<Written> {
    let partial = path.with_added_extension("partial");
    let journal_path = path.with_added_extension("journal");
    check_name(path, "model.gguf")?;
    for name in [path, &partial, &journal_path] {
        check_not_read(name, inputs)?;
    }
    let mut fingerprint = blake3::Hasher::new();
    fingerprint.update(&writer.header(None)).update(identity);
    if !order.is_sorted() {
        for &i in order {
            fingerprint.update(&(i as u64).to_le_bytes());
        }
    }
    let fingerprint = fingerprint.finalize();

    let there = fs::metadata(&partial).map_or(0, |m| m.len());
    check_space(path, writer.file_bytes().saturating_sub(there))?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&partial)
        .map_err(Error::io("create", &partial))?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        return Err(Error::Argument(format!("another run is writing {}; wait for it", partial.display())));
    }
    let mut digests = resume(&mut file, &journal_path, writer, order, &fingerprint);
    let resumed = digests.len();
    let mut journal = Journal::open(&journal_path, &fingerprint, &digests)?;
    // Reserves the length, so that padding is zero whatever stood there before.
    let ends = order[..resumed].iter().map(|&i| writer.offset(i) + writer.size(i));
    let keep = ends.max().unwrap_or(0);
    file.set_len(keep)
        .and_then(|()| file.set_len(writer.file_bytes()))
        .map_err(Error::io("extend", &partial))?;
    order[..resumed].iter().for_each(|&i| {
        progress(writer.size(i));
    });

    let padding = (0..writer.len()).map(|i| writer.behind(i)).max().unwrap_or(0);
    let zeros = vec![0; padding];
    let mut ready = order.get(resumed).map(|&first| produce(first)).transpose()?;
    while let Some(bytes) = ready.take() {
        let done = digests.len();
        let i = order[done];
        debug_assert_eq!(bytes.len() as u64, writer.size(i));
        let store = || -> Result<Hash> {
            file.seek(SeekFrom::Start(writer.offset(i)))
                .and_then(|_| file.write_all(&bytes))
                .and_then(|()| file.write_all(&zeros[..writer.behind(i)]))
                .map_err(Error::io("write", &partial))?;
            Ok(blake3::Hasher::new().update_rayon(&bytes).finalize())
        };
        let next = || order.get(done + 1).map(|&next| produce(next)).transpose();
        let (stored, made) = rayon::join(store, next);
        digests.push(stored?);
        journal.add(&digests[done])?;
        if !progress(writer.size(i)) {
            return Err(Error::Cancelled);
        }
        ready = made?;
    }

    let mut in_place = digests.clone();
    order.iter().zip(digests).for_each(|(&i, digest)| in_place[i] = digest);
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.write_all(&writer.header(Some(&in_place))))
        .map_err(Error::io("write", &partial))?;
    put_in_place(&file, &partial, path)?;
    fs::remove_file(&journal_path).map_err(Error::io("remove", &journal_path))?;
    Ok(Written { bytes: writer.file_bytes(), resumed })
}

/// Digests of the tensors that an earlier run of the same plan has written whole.
fn resume(
    partial: &mut File,
    journal: &Path,
    writer: &Writer,
    order: &[usize],
    fingerprint: &Hash,
) -> Vec<Hash> {
    let Ok(lines) = File::open(journal) else { return Vec::new() };
    let mut lines = BufReader::new(lines).lines().map_while(io::Result::ok);
    if lines.next().as_deref() != Some(fingerprint.to_hex().as_str()) {
        tracing::warn!("{} is of another conversion: starting over", journal.display());
        return Vec::new();
    }
    let mut digests = Vec::new();
    for (&i, line) in order.iter().zip(lines) {
        let Ok(expected) = Hash::from_hex(line.trim()) else { break };
        if !matches!(digest_of(partial, writer.offset(i), writer.size(i)), Ok(found) if found == expected) {
            break;
        }
        digests.push(expected);
    }
    digests
}

fn digest_of(file: &mut File, offset: u64, size: u64) -> io::Result<Hash> {
    file.seek(SeekFrom::Start(offset))?;
    let (mut hasher, mut left) = (blake3::Hasher::new(), size);
    let mut buffer = vec![0; CHECK_BYTES.min(usize::try_from(size).unwrap_or(CHECK_BYTES))];
    while left > 0 {
        let piece = buffer.len().min(usize::try_from(left).unwrap_or(buffer.len()));
        file.read_exact(&mut buffer[..piece])?;
        hasher.update_rayon(&buffer[..piece]);
        left -= piece as u64;
    }
    Ok(hasher.finalize())
}

/// The list of finished tensors: the fingerprint of the conversion, then a digest a line.
struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    fn open(path: &Path, fingerprint: &Hash, digests: &[Hash]) -> Result<Self> {
        let lines = [fingerprint].into_iter().chain(digests).map(|h| format!("{}\n", h.to_hex()));
        let new = path.with_added_extension("new");
        let mut file = File::create(&new).map_err(Error::io("create", &new))?;
        file.write_all(lines.collect::<String>().as_bytes()).map_err(Error::io("write", &new))?;
        fs::rename(&new, path).map_err(Error::io("replace", path))?;
        Ok(Self { file, path: path.into() })
    }

    fn add(&mut self, digest: &Hash) -> Result<()> {
        writeln!(self.file, "{}", digest.to_hex()).map_err(Error::io("write", &self.path))
    }
}
