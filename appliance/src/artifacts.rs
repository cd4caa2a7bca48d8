//! Where what was compiled ahead of time is kept: a directory, or a prefix of a bucket.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use neuron_backend::artifact::{Bundle, MANIFEST, Store};

use crate::golden;
use crate::objects::{Listed, Object, ObjectError, Objects, Prefix};

/// Where bundles are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Artifacts {
    /// A directory of this host: `DIR` or `file:///DIR`.
    Directory(PathBuf),
    /// `s3://bucket/prefix`.
    Objects(Prefix),
}

/// Why bundles cannot be had or stored.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactsError {
    /// Those of a bucket.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// There is nowhere to keep copies of those of a bucket.
    #[error("cannot keep bundles in {path}: {why}; set XDG_CACHE_HOME to a directory with room")]
    Local {
        /// The directory.
        path: String,
        /// Why not.
        why: io::Error,
    },
    /// There is no home directory.
    #[error("there is no home directory to keep artifacts in: set --artifacts DIR")]
    Homeless,
}

impl FromStr for Artifacts {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = match text.split_once("://") {
            None => text,
            Some(("file", path)) if path.starts_with('/') => path,
            Some(("file", _)) => return Err("after file:// comes an absolute path"),
            Some(("s3", rest)) => return rest.parse().map(Self::Objects),
            Some(_) => return Err("it is a directory, file:///DIR or s3://BUCKET/PREFIX"),
        };
        match path {
            "" => Err("it is empty"),
            path => Ok(Self::Directory(path.into())),
        }
    }
}

impl fmt::Display for Artifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Objects(prefix) => prefix.fmt(f),
        }
    }
}

impl Artifacts {
    /// Where they are kept unless somebody says otherwise.
    ///
    /// # Errors
    /// There is no home directory.
    pub fn of_user() -> Result<Self, ArtifactsError> {
        Ok(Self::Directory(cache()?.join("artifacts")))
    }

    /// The directory that is prepared in: itself, or that of copies.
    ///
    /// # Errors
    /// There is no home directory.
    pub fn directory(&self) -> Result<PathBuf, ArtifactsError> {
        match self {
            Self::Directory(path) => Ok(path.clone()),
            Self::Objects(prefix) => {
                let folder = cache()?.join("objects").join(&prefix.bucket);
                Ok(folder.join(&prefix.prefix))
            }
        }
    }

    /// The store to find a bundle in. Of one in a bucket the manifests are fetched now, and the bundle
    /// once it is chosen.
    ///
    /// # Errors
    /// It cannot be seen.
    pub fn store(&self) -> Result<Store, ArtifactsError> {
        let root = self.directory()?;
        let Self::Objects(prefix) = self else {
            return Ok(Store::new(root));
        };
        let objects = Objects::open()?;
        let listed = match objects.list(prefix) {
            // A store that nothing was prepared for yet.
            Err(ObjectError::Absent { .. }) => Vec::new(),
            listed => listed?,
        };
        forget(&root).map_err(|why| local(&root, why))?;
        let wanted = |listed: &&Listed| is_manifest(&listed.name) || is_golden(&listed.name);
        for listed in listed.iter().filter(wanted) {
            copy(&objects, prefix, listed, &root.join(&listed.name))
                .map_err(|why| local(&root, why))?;
        }
        let place = prefix.clone();
        let bring = move |name: &Path, to: &Path| {
            let listed = listed.iter().find(|listed| Path::new(&listed.name) == name);
            let listed = listed.ok_or(io::ErrorKind::NotFound)?;
            copy(&objects, &place, listed, to)
        };
        Ok(Store::copy_of(self.to_string(), root, Arc::new(bring)))
    }

    /// Stores golden answers that were put into [`Artifacts::directory`].
    ///
    /// # Errors
    /// They cannot be stored.
    pub fn keep_golden(&self, file: &Path) -> Result<(), ArtifactsError> {
        let Self::Objects(prefix) = self else {
            return Ok(());
        };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let under = prefix.under(golden::DIRECTORY);
        Objects::open()?.put_file(&under, &name, file, &|_| ())?;
        Ok(())
    }

    /// Stores a bundle that was prepared in [`Artifacts::directory`], its manifest last.
    ///
    /// # Errors
    /// It cannot be stored.
    pub fn keep(&self, bundle: &Bundle) -> Result<(), ArtifactsError> {
        let Self::Objects(prefix) = self else {
            return Ok(());
        };
        let objects = Objects::open()?;
        let under = prefix.under(&bundle.manifest().key);
        for module in &bundle.manifest().modules {
            for path in [bundle.neff(module.bucket), bundle.hlo(module.bucket)] {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                objects.put_file(&under, &name, &path, &|_| ())?;
            }
        }
        let manifest = bundle.directory().join(MANIFEST);
        objects.put_file(&under, MANIFEST, &manifest, &|_| ())?;
        Ok(())
    }
}

/// Whether this is the manifest of a bundle: of the prefix itself, or of one under it.
fn is_manifest(name: &str) -> bool {
    match name.split_once('/') {
        None => name == MANIFEST,
        Some((bundle, rest)) => {
            let is_key = bundle.bytes().all(|byte| byte.is_ascii_alphanumeric());
            rest == MANIFEST && is_key && !bundle.is_empty()
        }
    }
}

/// Whether these are golden answers.
fn is_golden(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let name = name
        .strip_prefix(golden::DIRECTORY)
        .and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| !name.starts_with('.') && name.bytes().all(is_plain))
}

/// Removes the manifests of copies: which bundles there are is asked for each time. What else there is of
/// them is good as long as its digest is.
fn forget(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let manifest = if path.is_dir() {
            path.join(MANIFEST)
        } else {
            path
        };
        if manifest.file_name().is_some_and(|name| name == MANIFEST) && manifest.exists() {
            fs::remove_file(manifest)?;
        }
    }
    Ok(())
}

/// Fetches an object into a file, whole or not at all.
fn copy(objects: &Objects, prefix: &Prefix, listed: &Listed, to: &Path) -> io::Result<()> {
    let bytes = Object::new(objects, prefix, listed).bytes();
    let bytes = bytes.map_err(io::Error::other)?;
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    let part = to.with_extension("part");
    fs::write(&part, bytes)?;
    fs::rename(&part, to)
}

/// Where this user's programs keep what they can get again.
fn cache() -> Result<PathBuf, ArtifactsError> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    Ok(cache.ok_or(ArtifactsError::Homeless)?.join("appliance"))
}

fn local(path: &Path, why: io::Error) -> ArtifactsError {
    ArtifactsError::Local {
        path: path.display().to_string(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_in_a_directory_or_a_bucket() {
        let parse = |text: &str| text.parse::<Artifacts>();
        assert_eq!(parse("a/b"), Ok(Artifacts::Directory("a/b".into())));
        assert_eq!(
            parse("file:///a/b"),
            Ok(Artifacts::Directory("/a/b".into()))
        );
        let objects = parse("s3://bucket/compiled/").unwrap();
        assert_eq!(objects.to_string(), "s3://bucket/compiled");
        for (text, why) in [
            ("", "empty"),
            ("file://a", "absolute"),
            ("http://a", "s3://BUCKET/PREFIX"),
            ("s3://", "the name of a bucket"),
        ] {
            assert!(parse(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn manifests_are_of_the_prefix_or_of_a_bundle_under_it() {
        for (name, expected) in [
            ("manifest.json", true),
            ("0a1b/manifest.json", true),
            ("../manifest.json", false),
            ("/manifest.json", false),
            ("a/b/manifest.json", false),
            ("0a1b/decode.neff", false),
        ] {
            assert_eq!(is_manifest(name), expected, "{name}");
        }
    }
}
