//! A layer's bytes as the archive that they hold: decompressed, counted and hashed on the way, and cut off when there are
//! more than allowed.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use crate::digest::{Digest, Hasher};
use crate::policy::Limits;

/// Below this, in bytes, no ratio is suspicious.
const RATIO_FLOOR: u64 = 64 * 1024 * 1024;
/// The base-2 logarithm of the largest window that zstd may ask for: 128 MiB, what the zstd tool accepts by default.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A limit that was passed. It travels inside the `io::Error` of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// More bytes than a layer may have.
    #[error("it unpacks to more than {0} bytes")]
    Bytes(u64),
    /// Far more bytes than were downloaded.
    #[error("it unpacks to more than {0} times its size")]
    Ratio(u64),
    /// Headers of one entry that do not end.
    #[error("the headers of one entry are larger than {0} bytes")]
    Headers(u64),
    /// Too many entries, with the directories that only their paths name.
    #[error("it has more than {0} entries and directories")]
    Entries(u64),
    /// Too long paths of directories, together.
    #[error("the paths and attributes of its directories take more than {0} bytes")]
    Paths(u64),
}

impl From<Excess> for io::Error {
    fn from(excess: Excess) -> io::Error {
        io::Error::other(excess)
    }
}

impl Excess {
    /// The excess in an error, if that is what it is.
    pub(crate) fn of(error: &io::Error) -> Option<Excess> {
        // Decoders may wrap what the reader below them said.
        let mut cause: &(dyn std::error::Error + 'static) = error.get_ref()?;
        loop {
            if let Some(excess) = cause.downcast_ref::<Excess>() {
                return Some(*excess);
            }
            cause = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => inner,
                None => cause.source()?,
            };
        }
    }
}

/// What has passed so far; shared by the reader and whoever reads.
pub(crate) struct Meter {
    packed: Cell<u64>,
    unpacked: Cell<u64>,
    /// What may still be read before the next reset.
    allowance: Cell<u64>,
    allowed: Cell<u64>,
    hasher: RefCell<Hasher>,
}

impl Meter {
    /// Has reads fail after this many bytes, until the next call.
    pub(crate) fn allow(&self, bytes: u64) {
        self.allowed.set(bytes);
        self.allowance.set(bytes);
    }

    /// The digest of everything that passed.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.borrow().clone().finish()
    }
}

/// Reads the archive.
pub(crate) struct Inflate {
    inner: Box<dyn Read>,
    meter: Rc<Meter>,
    bytes: u64,
    ratio: u64,
}

struct Packed<R> {
    inner: R,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Packed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.meter.packed.set(self.meter.packed.get() + read as u64);
        Ok(read)
    }
}

/// How an archive is compressed, told by its first bytes: what a media type says may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(first: &[u8]) -> Compression {
        match first {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame, with which zstd archives made for seeking may begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// Looks at the beginning of a file and goes back to it.
    pub(crate) fn of_file(file: &mut File) -> io::Result<Compression> {
        use std::io::Seek as _;
        let mut first = [0; 4];
        let mut filled = 0;
        while filled < first.len() {
            match file.read(&mut first[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        file.rewind()?;
        Ok(Compression::of(&first[..filled]))
    }
}

/// The archive in a file that begins at its beginning.
pub(crate) fn archive(mut file: File, limits: &Limits) -> io::Result<(Inflate, Rc<Meter>)> {
    let compression = Compression::of_file(&mut file)?;
    reader(BufReader::with_capacity(64 * 1024, file), compression, limits)
}

/// The archive in a reader.
pub(crate) fn reader(
    packed: impl Read + 'static,
    compression: Compression,
    limits: &Limits,
) -> io::Result<(Inflate, Rc<Meter>)> {
    let meter = Rc::new(Meter {
        packed: Cell::new(0),
        unpacked: Cell::new(0),
        allowance: Cell::new(u64::MAX),
        allowed: Cell::new(u64::MAX),
        hasher: RefCell::new(Hasher::new()),
    });
    let packed = Packed { inner: packed, meter: meter.clone() };
    let inner: Box<dyn Read> = match compression {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(packed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    };
    Ok((Inflate { inner, meter: meter.clone(), bytes: limits.layer_bytes, ratio: limits.ratio }, meter))
}

impl Read for Inflate {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let meter = &*self.meter;
        let unpacked = meter.unpacked.get() + read as u64;
        meter.unpacked.set(unpacked);
        if unpacked > self.bytes {
            return Err(Excess::Bytes(self.bytes).into());
        }
        if unpacked > RATIO_FLOOR && unpacked / self.ratio > meter.packed.get() {
            return Err(Excess::Ratio(self.ratio).into());
        }
        let allowance = meter.allowance.get();
        if read as u64 > allowance {
            return Err(Excess::Headers(meter.allowed.get()).into());
        }
        meter.allowance.set(allowance - read as u64);
        meter.hasher.borrow_mut().update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn zeros(bytes: usize) -> Vec<u8> {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(&vec![0; bytes]).unwrap();
        gz.finish().unwrap()
    }

    fn read(packed: Vec<u8>, limits: &Limits) -> io::Result<u64> {
        let compression = Compression::of(&packed);
        let (mut inflate, _) = reader(io::Cursor::new(packed), compression, limits)?;
        io::copy(&mut inflate, &mut io::sink())
    }

    #[test]
    fn bombs_are_cut_off() {
        let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
        let excess = |limits: &Limits, bytes: usize| Excess::of(&read(zeros(bytes), limits).unwrap_err());
        assert_eq!(excess(&limits, (1 << 20) + 1), Some(Excess::Bytes(1 << 20)));
        assert_eq!(read(zeros(1 << 20), &limits).unwrap(), 1 << 20);
        assert_eq!(excess(&Limits::default(), 80 << 20), Some(Excess::Ratio(200)));
    }

    #[test]
    fn both_compressions_give_the_same_digest() {
        let data = b"palisade".repeat(1000);
        let zst = zstd::encode_all(&data[..], 1).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&data).unwrap();
        for packed in [data.clone(), zst, gz.finish().unwrap()] {
            let compression = Compression::of(&packed);
            let (mut inflate, meter) = reader(io::Cursor::new(packed), compression, &Limits::default()).unwrap();
            io::copy(&mut inflate, &mut io::sink()).unwrap();
            assert_eq!(meter.digest(), Digest::of(&data));
        }
    }

    #[test]
    fn damaged_streams_are_errors() {
        let mut packed = zeros(1000);
        packed.truncate(packed.len() - 4);
        assert!(read(packed, &Limits::default()).is_err());
        assert!(read(vec![0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff], &Limits::default()).is_err());
    }
}
