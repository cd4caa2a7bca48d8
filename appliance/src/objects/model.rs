//! A model under a prefix: its small files are fetched, its weights are streamed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{Bytes, Files, Flow};

use super::manifest::{BLOCK, MANIFEST, Manifest};
use super::throttle;
use crate::source::FileVersion;

use super::{BlockCache, Listed, Object, ObjectError, Objects, Prefix};

/// A tokenizer of 256,000 tokens has 34 MB.
const SMALL: u64 = 256 << 20;

/// Files that are weights end so.
const WEIGHTS: &str = ".safetensors";

/// Blocks in flight and in memory: half a gibibyte, which at 30 ms an answer keeps 10 Gbit/s busy.
pub const FLOW: Flow = Flow {
    block: BLOCK,
    readers: throttle::MOST,
    held: 64,
};

/// A model under a prefix, as it was when it was opened.
#[derive(Debug)]
pub struct ObjectModel {
    objects: Objects,
    prefix: Prefix,
    files: BTreeMap<String, Listed>,
    manifest: Option<Manifest>,
    cache: Option<Arc<BlockCache>>,
}

impl ObjectModel {
    /// Its files as they are now.
    pub(crate) fn versions(&self) -> Vec<FileVersion> {
        let version = |listed: &Listed| FileVersion {
            name: listed.name.clone(),
            size: listed.size,
            version: listed.etag.clone(),
        };
        self.files.values().map(version).collect()
    }

    /// Looks at what is under `prefix`.
    ///
    /// # Errors
    /// It cannot be seen, or there is no model, or not the one of the manifest.
    pub fn open(
        objects: &Objects,
        prefix: &Prefix,
        cache: Option<Arc<BlockCache>>,
    ) -> Result<Self, ObjectError> {
        let all = objects.list(prefix)?.into_iter();
        // What is under further prefixes is another model's.
        let files = all.filter(|listed| !listed.name.contains('/'));
        let files = files.map(|listed| (listed.name.clone(), listed)).collect();
        let mut model = Self {
            objects: objects.clone(),
            prefix: prefix.clone(),
            files,
            manifest: None,
            cache,
        };
        if !model.files.contains_key("config.json") {
            let url = prefix.to_string();
            let why = "it has no config.json: is it the prefix of a model?".to_owned();
            return Err(ObjectError::Answer { url, why });
        }
        if let Some(listed) = model.files.get(MANIFEST) {
            let json = Object::new(objects, prefix, listed).whole(SMALL)?;
            model.manifest = Some(model.checked(&json)?);
        } else {
            tracing::warn!(
                prefix = %prefix,
                "there is no {MANIFEST}: that the weights are those that were stored is not proven, only \
                 that they do not change while they are read; appliance pull SOURCE --to s3://.. stores one"
            );
        }
        Ok(model)
    }

    /// The manifest, which must be of the files that there are.
    fn checked(&self, json: &[u8]) -> Result<Manifest, ObjectError> {
        let wrong = |why| ObjectError::Answer {
            url: self.prefix.url(MANIFEST),
            why,
        };
        let manifest = Manifest::parse(json).map_err(wrong)?;
        for entry in &manifest.files {
            let size = self.files.get(&entry.name).map(|listed| listed.size);
            if size != Some(entry.bytes) {
                let size = size.map_or("is not there".to_owned(), |size| format!("has {size}"));
                let (name, bytes) = (&entry.name, entry.bytes);
                return Err(wrong(format!(
                    "{name} should have {bytes} bytes and {size}"
                )));
            }
        }
        Ok(manifest)
    }

    /// Puts the small files into `directory`: what tells of the model and its text.
    pub fn fetch_small(&self, directory: &Path) -> Result<(), ObjectError> {
        for name in self.files.keys().filter(|name| !name.ends_with(WEIGHTS)) {
            let size = self.files[name].size;
            if name == MANIFEST || size > SMALL {
                continue;
            }
            let object = self
                .object(name)
                .map_err(|error| self.unopened(name, &error))?;
            let bytes = object.whole(SMALL)?;
            let path = directory.join(name);
            fs::write(&path, bytes).map_err(|why| local(&path, why))?;
        }
        Ok(())
    }

    /// Puts all files into `directory`, made if it is not there. `came` is told of bytes as they come.
    pub fn fetch_all(
        &self,
        directory: &Path,
        mut came: impl FnMut(u64),
    ) -> Result<(), ObjectError> {
        fs::create_dir_all(directory).map_err(|why| local(directory, why))?;
        self.fetch_small(directory)?;
        for name in self.files.keys().filter(|name| name.ends_with(WEIGHTS)) {
            let object = self
                .object(name)
                .map_err(|error| self.unopened(name, &error))?;
            let path = directory.join(name);
            let part = directory.join(format!("{name}.incomplete"));
            let mut file = File::create(&part).map_err(|why| local(&part, why))?;
            let mut block = vec![0; BLOCK];
            let mut at = 0;
            while at < object.len() {
                let left = usize::try_from(object.len() - at).unwrap_or(usize::MAX);
                let block = &mut block[..left.min(BLOCK)];
                object.range(at, block)?;
                file.write_all(block).map_err(|why| local(&part, why))?;
                at += block.len() as u64;
                came(block.len() as u64);
            }
            fs::rename(&part, &path).map_err(|why| local(&path, why))?;
        }
        Ok(())
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> u64 {
        let weights = self
            .files
            .values()
            .filter(|listed| listed.name.ends_with(WEIGHTS));
        weights.map(|listed| listed.size).sum()
    }

    fn object(&self, name: &str) -> io::Result<Object> {
        let listed = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let object = Object::new(&self.objects, &self.prefix, listed);
        let Some(manifest) = &self.manifest else {
            return Ok(object);
        };
        match manifest.entry(name) {
            Some(entry) => {
                // Small files are not worth a place.
                let cache = self.cache.clone().filter(|_| name.ends_with(WEIGHTS));
                Ok(object.verified(entry.blocks.clone(), cache))
            }
            None if name.ends_with(WEIGHTS) => Err(io::Error::other(format!(
                "{MANIFEST} does not name it: store the model again, with appliance pull SOURCE --to s3://.."
            ))),
            None => Ok(object),
        }
    }

    fn unopened(&self, name: &str, error: &io::Error) -> ObjectError {
        ObjectError::Answer {
            url: self.prefix.url(name),
            why: error.to_string(),
        }
    }
}

impl Files for ObjectModel {
    fn open(&self, name: &str) -> io::Result<Arc<dyn Bytes>> {
        Ok(Arc::new(self.object(name)?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.prefix.url(name).into()
    }

    fn flow(&self) -> Flow {
        FLOW
    }
}

fn local(path: &Path, why: io::Error) -> ObjectError {
    ObjectError::Local {
        path: path.display().to_string(),
        why,
    }
}
