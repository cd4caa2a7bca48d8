//! The header of a NEFF: 1024 bytes of little-endian numbers before a compressed archive (neuron.md
//! 2.7, from AWS's guide to NEFF files).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Bytes of the header.
const HEADER: usize = 1024;

/// What a gzip stream begins with (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What a NEFF's header says of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Of the format.
    pub version: (u64, u64),
    /// Bytes of the archive.
    pub data_bytes: u64,
    /// What the compiler was.
    pub build: String,
    /// Where the compiler wrote it.
    pub name: String,
    /// Physical cores of the logical core that it runs on; 0 where the compiler does not say.
    pub lnc: u32,
    /// Bits of features that the runtime must have.
    pub features: u64,
}

/// Why a file is no NEFF that can be loaded.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Too short for a header.
    #[error("it has {found} bytes, and a NEFF's header alone has {HEADER}")]
    Short {
        /// Bytes it has.
        found: u64,
    },
    /// Its header has another length.
    #[error("it says that its header has {found} bytes; a NEFF's has {HEADER}")]
    HeaderSize {
        /// What it says.
        found: u64,
    },
    /// It ends too early.
    #[error("it is cut off: {found} of the {expected} bytes after its header are there")]
    Truncated {
        /// Bytes after the header.
        found: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// What follows the header is no compressed archive.
    #[error("what follows its header is no compressed archive")]
    Archive,
    /// It was compiled for another logical core.
    #[error(
        "it is for logical cores of {found} physical cores, and the bundle for those of {expected}"
    )]
    Lnc {
        /// What it says.
        found: u32,
        /// What it should be.
        expected: u32,
    },
}

impl Header {
    /// Reads and checks the header of a file.
    ///
    /// # Errors
    /// The file is no NEFF, or not a whole one.
    pub fn read(path: &Path) -> Result<Self, HeaderError> {
        let mut file = File::open(path)?;
        let found = file.metadata()?.len();
        let mut bytes = [0; HEADER + GZIP.len()];
        if found < bytes.len() as u64 {
            return Err(HeaderError::Short { found });
        }
        file.read_exact(&mut bytes)?;
        let (header, archive) = bytes.split_at(HEADER);
        if archive != GZIP {
            return Err(HeaderError::Archive);
        }
        Self::parse(header, found - HEADER as u64)
    }

    fn parse(header: &[u8], data: u64) -> Result<Self, HeaderError> {
        let mut fields = Fields(header);
        let _package = fields.u64();
        let header_size = fields.u64();
        let expected = fields.u64();
        let version = (fields.u64(), fields.u64());
        let build = fields.text(128);
        fields.skip(4 + 32 + 16); // number of cores, hash, uuid
        let name = fields.text(256);
        fields.skip(4 + 64); // requested cores, cores of each node
        let features = fields.u64();
        let lnc = fields.u32();
        if header_size != HEADER as u64 {
            return Err(HeaderError::HeaderSize { found: header_size });
        }
        if expected > data {
            let found = data;
            return Err(HeaderError::Truncated { found, expected });
        }
        Ok(Self {
            version,
            data_bytes: expected,
            build,
            name,
            lnc,
            features,
        })
    }

    /// Refuses a NEFF that says it is for another logical core.
    ///
    /// # Errors
    /// [`HeaderError::Lnc`].
    pub fn check_lnc(&self, expected: u32) -> Result<(), HeaderError> {
        match self.lnc {
            0 => Ok(()),
            found if found == expected => Ok(()),
            found => Err(HeaderError::Lnc { found, expected }),
        }
    }
}

/// What is left of the header.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next bytes, fewer at the end.
    fn skip(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn u64(&mut self) -> u64 {
        let bytes = self.skip(8).first_chunk().copied();
        bytes.map_or(0, u64::from_le_bytes)
    }

    fn u32(&mut self) -> u32 {
        let bytes = self.skip(4).first_chunk().copied();
        bytes.map_or(0, u32::from_le_bytes)
    }

    /// A text that ends at its first zero.
    fn text(&mut self, count: usize) -> String {
        let bytes = self.skip(count).split(|byte| *byte == 0).next();
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A NEFF with this lnc and archive.
    pub(crate) fn neff(lnc: u32, archive: &[u8]) -> Vec<u8> {
        let mut header = Vec::new();
        let data = archive.len() as u64;
        for number in [2, HEADER as u64, data, 2, 0] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        header.resize(220, 0);
        header.extend_from_slice(b"graph.neff");
        header.resize(544, 0);
        header.extend_from_slice(&7_u64.to_le_bytes());
        header.extend_from_slice(&lnc.to_le_bytes());
        header.resize(HEADER, 0);
        [&header, archive].concat()
    }

    fn read(bytes: &[u8]) -> Result<Header, HeaderError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.neff");
        std::fs::write(&path, bytes).unwrap();
        Header::read(&path)
    }

    #[test]
    fn a_header_is_read_where_aws_puts_its_fields() {
        let header = read(&neff(2, b"\x1f\x8bdata")).unwrap();
        assert_eq!(header.version, (2, 0));
        assert_eq!((header.data_bytes, header.lnc, header.features), (6, 2, 7));
        assert_eq!(header.name, "graph.neff");
        assert!(header.check_lnc(2).is_ok());
        let error = header.check_lnc(1).unwrap_err().to_string();
        assert!(error.contains("2 physical cores"), "{error}");
    }

    #[test]
    fn what_is_no_neff_is_refused_with_the_reason() {
        let check = |bytes: &[u8], why: &str| {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        let whole = neff(1, b"\x1f\x8bdata");
        check(b"short", "has 5 bytes");
        check(&whole[..1027], "cut off: 3 of the 6");
        check(&neff(1, b"no gzip"), "no compressed archive");
        let mut other = whole.clone();
        other[8] = 1;
        check(&other, "its header has 1025 bytes");
    }
}
