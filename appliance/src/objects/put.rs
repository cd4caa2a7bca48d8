//! Storing files: in parts, several at once, each read from the disk once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::manifest::{BLOCK, Entry};
use super::{ObjectError, Objects, Prefix, digest, hexadecimal, stop};

const ACTION: &str = "s3:PutObject";

/// Parts that are under way at once.
const AT_ONCE: usize = 8;

/// Parts that an upload may have.
const PARTS: u64 = 10_000;

/// The least bytes of a part: whole blocks.
const PART: u64 = 2 * BLOCK as u64;

impl Objects {
    /// Stores `bytes` as the object called `name`.
    ///
    /// # Errors
    /// It cannot be stored.
    pub fn put(&self, prefix: &Prefix, name: &str, bytes: Vec<u8>) -> Result<(), ObjectError> {
        let (url, key) = (prefix.url(name), prefix.key(name));
        let bytes = Bytes::from(bytes);
        self.persist(ACTION, &url, || {
            let call = (self.client().put_object())
                .bucket(&prefix.bucket)
                .key(&key)
                .body(ByteStream::from(bytes.clone()));
            let url = url.clone();
            async move { call.send().await.map_err(|error| stop(&error, ACTION, url)) }
        })?;
        Ok(())
    }

    /// Stores the file at `path` as the object called `name`, and gives what a manifest says of it. `went`
    /// is told of bytes as they go.
    ///
    /// # Errors
    /// It cannot be read or stored. Nothing of it is left.
    pub fn put_file(
        &self,
        prefix: &Prefix,
        name: &str,
        path: &Path,
        went: &(dyn Fn(u64) + Sync),
    ) -> Result<Entry, ObjectError> {
        let local = |why| ObjectError::Local {
            path: path.display().to_string(),
            why,
        };
        let file = File::open(path).map_err(local)?;
        let bytes = file.metadata().map_err(local)?.len();
        let part = bytes.div_ceil(PARTS).next_multiple_of(PART).max(PART);
        let read = |at: u64, len: u64| -> Result<Vec<u8>, ObjectError> {
            let mut content = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut content, at).map_err(local)?;
            Ok(content)
        };
        thread::scope(|scope| {
            let entry = scope.spawn(|| entry(name, &file).map_err(local));
            if bytes <= part {
                self.put(prefix, name, read(0, bytes)?)?;
                went(bytes);
            } else {
                let upload = Upload {
                    objects: self,
                    prefix,
                    url: prefix.url(name),
                    key: prefix.key(name),
                    id: self.begin(prefix, name)?,
                };
                let stored = upload.parts(bytes.div_ceil(part), |number| {
                    let at = (number - 1) * part;
                    let content = read(at, part.min(bytes - at))?;
                    let len = content.len() as u64;
                    let stored = upload.part(number, content)?;
                    went(len);
                    Ok(stored)
                });
                stored
                    .and_then(|parts| upload.complete(parts))
                    .inspect_err(|_| upload.abort())?;
            }
            let entry = entry.join();
            entry.unwrap_or_else(|_| Err(local(io::Error::other("reading it panicked"))))
        })
    }

    fn begin(&self, prefix: &Prefix, name: &str) -> Result<String, ObjectError> {
        let (url, key) = (prefix.url(name), prefix.key(name));
        let begun = self.persist(ACTION, &url, || {
            let call = (self.client().create_multipart_upload())
                .bucket(&prefix.bucket)
                .key(&key);
            let url = url.clone();
            async move { call.send().await.map_err(|error| stop(&error, ACTION, url)) }
        })?;
        let id = begun.upload_id().map(str::to_owned);
        let why = "the store gives the upload no id".to_owned();
        id.ok_or(ObjectError::Answer { url, why })
    }
}

/// An object that is being stored in parts.
struct Upload<'a> {
    objects: &'a Objects,
    prefix: &'a Prefix,
    url: String,
    key: String,
    id: String,
}

impl Upload<'_> {
    /// Stores parts 1 to `count`, some at once, and gives them in order.
    fn parts(
        &self,
        count: u64,
        store: impl Fn(u64) -> Result<CompletedPart, ObjectError> + Sync,
    ) -> Result<Vec<CompletedPart>, ObjectError> {
        let next = AtomicU64::new(1);
        let stored = Mutex::new(Ok(BTreeMap::new()));
        let lock = || stored.lock().unwrap_or_else(PoisonError::into_inner);
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number > count || lock().is_err() {
                            return;
                        }
                        let part = store(number);
                        let mut stored = lock();
                        match (&mut *stored, part) {
                            (Ok(parts), Ok(part)) => {
                                parts.insert(number, part);
                            }
                            (Ok(_), Err(error)) => *stored = Err(error),
                            (Err(_), _) => {}
                        }
                    }
                });
            }
        });
        let stored = stored
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)?;
        Ok(stored.into_values().collect())
    }

    fn part(&self, number: u64, content: Vec<u8>) -> Result<CompletedPart, ObjectError> {
        // Copies share the bytes: an attempt again costs none.
        let content = Bytes::from(content);
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        let stored = self.objects.persist(ACTION, &self.url, || {
            let call = (self.objects.client().upload_part())
                .bucket(&self.prefix.bucket)
                .key(&self.key)
                .upload_id(&self.id)
                .part_number(number)
                .body(ByteStream::from(content.clone()));
            let url = self.url.clone();
            async move { call.send().await.map_err(|error| stop(&error, ACTION, url)) }
        })?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(stored.e_tag().map(str::to_owned))
            .set_checksum_crc32(stored.checksum_crc32().map(str::to_owned))
            .set_checksum_crc64_nvme(stored.checksum_crc64_nvme().map(str::to_owned))
            .build())
    }

    fn complete(&self, parts: Vec<CompletedPart>) -> Result<(), ObjectError> {
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        self.objects.persist(ACTION, &self.url, || {
            let call = (self.objects.client().complete_multipart_upload())
                .bucket(&self.prefix.bucket)
                .key(&self.key)
                .upload_id(&self.id)
                .multipart_upload(parts.clone());
            let url = self.url.clone();
            async move { call.send().await.map_err(|error| stop(&error, ACTION, url)) }
        })?;
        Ok(())
    }

    /// Has the store forget the parts, which would be paid for.
    fn abort(&self) {
        let call = (self.objects.client().abort_multipart_upload())
            .bucket(&self.prefix.bucket)
            .key(&self.key)
            .upload_id(&self.id);
        if self.objects.wait(call.send()).is_err() {
            tracing::warn!(
                url = self.url,
                "parts of a broken upload may be left in the bucket"
            );
        }
    }
}

/// What a manifest says of a file called `name`.
fn entry(name: &str, file: &File) -> io::Result<Entry> {
    let bytes = file.metadata()?.len();
    let (mut whole, mut blocks) = (Sha256::new(), Vec::new());
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
        let block = &mut block[..left.min(BLOCK)];
        file.read_exact_at(block, at)?;
        whole.update(&*block);
        blocks.push(digest(block));
        at += block.len() as u64;
    }
    Ok(Entry {
        name: name.to_owned(),
        bytes,
        sha256: hexadecimal(&whole.finalize()),
        blocks,
    })
}
