//! `appliance-manifest.json`: the digests of a model's files, beside them. Stored last, so that a prefix
//! with one is whole.

use serde::{Deserialize, Serialize};

/// Its name.
pub const MANIFEST: &str = "appliance-manifest.json";

/// Bytes of a block: what is read at once, and has one digest.
pub(crate) const BLOCK: usize = 8 << 20;

/// Raised whenever an older reader would misunderstand it.
const FORMAT: u32 = 1;

/// Files, and the digests of their blocks: each can be verified as soon as it is there, in any order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Bytes of a block.
    block: usize,
    /// Where the files came from.
    pub source: String,
    /// The files.
    pub files: Vec<Entry>,
}

/// A file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// SHA-256 of all of it, for other tools: `sha256sum` gives it.
    pub sha256: String,
    /// SHA-256 of each block, in order; the last may be shorter.
    pub blocks: Vec<String>,
}

impl Manifest {
    /// A manifest of these files.
    pub fn new(source: String, files: Vec<Entry>) -> Self {
        Self {
            format: FORMAT,
            block: BLOCK,
            source,
            files,
        }
    }

    /// Reads one; the error says what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT || manifest.block != BLOCK {
            return Err(format!(
                "its format is {} with blocks of {} bytes, and this version reads {FORMAT} with {BLOCK}",
                manifest.format, manifest.block
            ));
        }
        for entry in &manifest.files {
            let blocks = entry.bytes.div_ceil(BLOCK as u64);
            if entry.blocks.len() as u64 != blocks {
                let found = entry.blocks.len();
                return Err(format!(
                    "{} has {blocks} blocks and {found} digests",
                    entry.name
                ));
            }
            let is_digest = |text: &String| {
                text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
            };
            if !entry.blocks.iter().all(is_digest) {
                return Err(format!("{} has a digest that is none", entry.name));
            }
        }
        Ok(manifest)
    }

    /// The entry called `name`.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.name == name)
    }

    /// Its bytes.
    pub fn json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_back_or_refused() {
        let entry = Entry {
            name: "model.safetensors".to_owned(),
            bytes: BLOCK as u64 + 1,
            sha256: "a".repeat(64),
            blocks: vec!["b".repeat(64), "c".repeat(64)],
        };
        let manifest = Manifest::new("hf://a/b@c".to_owned(), vec![entry]);
        assert_eq!(Manifest::parse(&manifest.json()).as_ref(), Ok(&manifest));
        let mut short = manifest.clone();
        short.files[0].blocks.pop();
        assert!(
            Manifest::parse(&short.json())
                .unwrap_err()
                .contains("2 blocks and 1")
        );
        let mut wrong = manifest.clone();
        wrong.files[0].blocks[0] = "../../x".to_owned();
        assert!(Manifest::parse(&wrong.json()).is_err());
        let mut newer = manifest;
        newer.format = 2;
        assert!(
            Manifest::parse(&newer.json())
                .unwrap_err()
                .contains("format is 2")
        );
        assert!(Manifest::parse(b"{").is_err());
    }
}
