//! What a hub has of a model, and what of it a server wants.

use serde::Deserialize;

/// Which shard holds which weight.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Files that are wanted beside the weights, where a model has them.
const WANTED: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
];

/// The files of a model at one commit.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    /// The commit.
    pub(super) sha: String,
    entries: Vec<Entry>,
}

/// A file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its path in the model.
    pub(super) name: String,
    /// What its bytes are called in the cache.
    pub(super) id: String,
    /// How many bytes it has.
    pub(super) size: u64,
    /// The digest of its bytes, in hexadecimal digits; large files have one.
    pub(super) sha256: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads a hub's answer. Names of files are made of it: what could lead out of the cache is refused.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let answer: Answer = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if !is_hex(&answer.sha) {
            return Err(format!("{:?} is no commit", answer.sha));
        }
        let entries = answer.siblings.into_iter().map(Entry::parse);
        Ok(Self {
            sha: answer.sha,
            entries: entries.collect::<Result<_, _>>()?,
        })
    }

    /// The files to fetch, small ones first; the error says what is missing.
    pub(super) fn wanted(&self) -> Result<Vec<&Entry>, String> {
        let named = |name: &str| self.entries.iter().find(|entry| entry.name == name);
        let mut wanted: Vec<&Entry> = WANTED.iter().filter_map(|name| named(name)).collect();
        for needed in ["config.json", "tokenizer.json"] {
            if named(needed).is_none() {
                return Err(format!("it has no {needed}"));
            }
        }
        let weights = self.entries.iter().filter(|entry| is_weights(&entry.name));
        let weights: Vec<&Entry> = weights.collect();
        if weights.is_empty() {
            return Err(self.no_weights());
        }
        wanted.extend(weights);
        Ok(wanted)
    }

    fn no_weights(&self) -> String {
        let has = |end: &str| self.entries.iter().any(|entry| entry.name.ends_with(end));
        let instead = if has(".gguf") {
            "; it has GGUF files: fetch one and turn it into a directory with appliance import"
        } else if has(".bin") || has(".pt") || has(".pth") {
            "; it has pickled weights, which are programs: look for a revision with safetensors"
        } else {
            ""
        };
        format!("it has no model.safetensors and no model-*.safetensors{instead}")
    }
}

impl Entry {
    fn parse(sibling: Sibling) -> Result<Self, String> {
        let name = sibling.rfilename;
        let (id, size, sha256) = match (sibling.lfs, sibling.blob_id, sibling.size) {
            (Some(large), ..) => (large.sha256.clone(), large.size, Some(large.sha256)),
            (None, Some(id), Some(size)) => (id, size, None),
            _ => return Err(format!("{name} has no size or no id")),
        };
        if !is_hex(&id) {
            return Err(format!("{id:?} is no id of {name}"));
        }
        Ok(Self {
            name,
            id,
            size,
            sha256,
        })
    }
}

/// Whether a file holds weights in the layout that is served. Others (`consolidated.safetensors`, adapters)
/// hold the same weights once more or are no model.
fn is_weights(name: &str) -> bool {
    let whole = name == "model.safetensors";
    let shard = name.starts_with("model-") && name.ends_with(".safetensors");
    whole || shard && !name.contains('/')
}

/// Whether a text is made of hexadecimal digits only, so that it can be a file's name.
pub(super) fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
