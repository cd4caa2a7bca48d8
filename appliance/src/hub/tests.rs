use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The path of a request, and where the range begins that it asks for.
type Asked = (String, Option<usize>);

/// A hub on loopback that has one model.
#[derive(Clone, Default)]
struct Fake {
    /// Path in the model and content.
    files: Vec<(&'static str, Vec<u8>)>,
    /// The digest that is given for large files, if it is not theirs.
    digest: Option<String>,
    /// After so many bytes of a body the connection ends, the first time.
    cut: Option<usize>,
    /// The token without which nothing is given.
    token: Option<&'static str>,
    cuts: Arc<AtomicUsize>,
    /// Each request.
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    fn model() -> Self {
        let weights: Vec<u8> = (0..200_000_u32)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        Self {
            files: vec![
                ("README.md", b"no".to_vec()),
                ("config.json", b"{}".to_vec()),
                ("tokenizer.json", b"{ }".to_vec()),
                ("tokenizer_config.json", b"{}".to_vec()),
                ("model.safetensors", weights),
                ("consolidated.safetensors", b"no".to_vec()),
                ("pytorch_model.bin", b"no".to_vec()),
                ("modeling.py", b"no".to_vec()),
                ("onnx/model.safetensors", b"no".to_vec()),
            ],
            ..Self::default()
        }
    }

    /// Serves until the process ends; the hub that it is, with a cache in `dir`.
    fn serve(&self, dir: &Path) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let fake = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is no reason to stop.
                fake.answer(stream.unwrap()).ok();
            }
        });
        Hub {
            endpoint,
            token: None,
            cache: dir.to_owned(),
        }
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap()?;
        let path = first.split(' ').nth(1).unwrap().to_owned();
        let mut range = None;
        let mut token = None;
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            match name.to_lowercase().as_str() {
                "range" => {
                    let start = value
                        .strip_prefix("bytes=")
                        .and_then(|start| start.strip_suffix('-'));
                    range = start.map(|start| start.parse::<usize>().unwrap());
                }
                "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
        self.asked.lock().unwrap().push((path.clone(), range));
        if self.token != token.as_deref() {
            return write!(
                stream,
                "HTTP/1.1 401 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
        }
        if path.starts_with("/api/") {
            return self.send(&mut stream, "200 OK", self.listing().as_bytes(), None);
        }
        let name = path
            .strip_prefix(&format!("/acme/tiny/resolve/{COMMIT}/"))
            .unwrap();
        let (_, content) = self.files.iter().find(|(file, _)| *file == name).unwrap();
        let first_time = self.cuts.load(Ordering::Relaxed) == 0;
        let cut = self.cut.filter(|cut| *cut < content.len() && first_time);
        self.cuts
            .fetch_add(usize::from(cut.is_some()), Ordering::Relaxed);
        match range {
            Some(start) => self.send(&mut stream, "206 Part", &content[start..], cut),
            None => self.send(&mut stream, "200 OK", content, cut),
        }
    }

    fn send(
        &self,
        to: &mut TcpStream,
        status: &str,
        body: &[u8],
        cut: Option<usize>,
    ) -> io::Result<()> {
        let length = body.len();
        write!(
            to,
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        )?;
        to.write_all(&body[..cut.unwrap_or(length)])
    }

    fn listing(&self) -> String {
        let sibling = |(name, content): &(&str, Vec<u8>)| {
            let size = content.len();
            let digest: String = Sha256::digest(content)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            if name.ends_with(".safetensors") {
                let digest = self.digest.clone().unwrap_or(digest);
                return json!({"rfilename": name, "size": size, "lfs": {"sha256": digest, "size": size}});
            }
            json!({"rfilename": name, "size": size, "blobId": &digest[..40]})
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        json!({"sha": COMMIT, "siblings": siblings}).to_string()
    }

    fn asked(&self) -> Vec<(String, Option<usize>)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn tiny(revision: &str) -> HubModel {
    HubModel {
        repository: "acme/tiny".to_owned(),
        revision: revision.to_owned(),
    }
}

fn has(dir: &Path, fake: &Fake) {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!(
        fs::read(dir.join("model.safetensors")).unwrap(),
        fake.files[4].1
    );
}

#[test]
fn a_model_is_fetched_once_into_the_layout_of_the_cache() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::model());
    let hub = fake.serve(dir.path());
    let snapshot = hub.fetch(&tiny("main")).unwrap();
    let folder = dir.path().join("models--acme--tiny");
    assert_eq!(snapshot, folder.join("snapshots").join(COMMIT));
    assert_eq!(
        fs::read_to_string(folder.join("refs/main")).unwrap(),
        COMMIT
    );
    has(&snapshot, &fake);
    // Two files have the same bytes.
    assert_eq!(fake.asked().len(), 4);

    assert_eq!(hub.fetch(&tiny("main")).unwrap(), snapshot);
    let listing = "/api/models/acme/tiny/revision/main?blobs=true".to_owned();
    assert_eq!(fake.asked(), [(listing, None)]);
    assert_eq!(hub.fetch(&tiny(COMMIT)).unwrap(), snapshot);
    assert_eq!(fake.asked(), []);
}

#[test]
fn what_is_here_is_served_without_the_hub() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::model());
    let mut hub = fake.serve(dir.path());
    let snapshot = hub.fetch(&tiny("main")).unwrap();
    // Nothing listens on port 1 of loopback.
    hub.endpoint = "http://127.0.0.1:1".to_owned();
    assert_eq!(hub.fetch(&tiny("main")).unwrap(), snapshot);
    let error = hub.fetch(&tiny("v2")).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot reach the hub http://127.0.0.1:1: "),
        "{error}"
    );
    assert!(
        error.contains("check the network, name a mirror with hub-endpoint"),
        "{error}"
    );
    fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    assert!(matches!(
        hub.fetch(&tiny("main")),
        Err(HubError::Unreachable { .. })
    ));
}

#[test]
fn a_broken_fetch_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake {
        cut: Some(150_000),
        ..Fake::model()
    };
    let snapshot = fake.serve(dir.path()).fetch(&tiny("main")).unwrap();
    has(&snapshot, &fake);
    let starts: Vec<_> = fake
        .asked()
        .into_iter()
        .filter_map(|(_, start)| start)
        .collect();
    assert_eq!(starts, [150_000]);
}

#[test]
fn what_another_run_has_begun_is_taken_up() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::model());
    let hub = fake.serve(dir.path());
    let digest = Sha256::digest(&fake.files[4].1);
    let id: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let blobs = dir.path().join("models--acme--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(
        blobs.join(format!("{id}.incomplete")),
        &fake.files[4].1[..70_000],
    )
    .unwrap();
    has(&hub.fetch(&tiny("main")).unwrap(), &fake);
    let starts: Vec<_> = fake
        .asked()
        .into_iter()
        .filter_map(|(_, start)| start)
        .collect();
    assert_eq!(starts, [70_000]);
}

#[test]
fn other_bytes_than_listed_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake {
        digest: Some("ab".repeat(32)),
        ..Fake::model()
    };
    let error = fake
        .serve(dir.path())
        .fetch(&tiny("main"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("not {}", "ab".repeat(32))),
        "{error}"
    );
    let blobs = fs::read_dir(dir.path().join("models--acme--tiny/blobs")).unwrap();
    assert_eq!(blobs.count(), 2);
}

#[test]
fn a_token_opens_what_is_not_public() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake {
        token: Some("hf_x"),
        ..Fake::model()
    };
    let mut hub = fake.serve(dir.path());
    let error = hub.fetch(&tiny("main")).unwrap_err().to_string();
    assert!(
        error.contains("does not give out hf://acme/tiny@main"),
        "{error}"
    );
    assert!(error.contains("set hub-token"), "{error}");
    hub.token = crate::config::Value::parse("hf_x");
    has(&hub.fetch(&tiny("main")).unwrap(), &fake);
}

#[test]
fn models_that_cannot_be_served_say_what_is_missing() {
    #[track_caller]
    fn check(files: &[&'static str], expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake {
            files: files.iter().map(|name| (*name, b"{}".to_vec())).collect(),
            ..Fake::default()
        };
        let error = fake
            .serve(dir.path())
            .fetch(&tiny("main"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("hf://acme/tiny@main cannot be served: it has no "),
            "{error}"
        );
        assert!(error.contains(expected), "{error}");
    }
    check(&["README.md"], "no config.json");
    check(&["config.json", "tokenizer.model"], "no tokenizer.json");
    check(
        &["config.json", "tokenizer.json", "model.gguf"],
        "appliance import",
    );
    check(
        &["config.json", "tokenizer.json", "pytorch_model.bin"],
        "with safetensors",
    );
}

#[test]
fn answers_that_lead_out_of_the_cache_are_refused() {
    #[track_caller]
    fn check(sha: &str, id: &str) {
        let entry = json!({"rfilename": "config.json", "size": 1, "blobId": id});
        let json = json!({"sha": sha, "siblings": [entry]}).to_string();
        assert!(Listing::parse(json.as_bytes()).is_err(), "{json}");
    }
    check("../../x", "ab");
    check("", "ab");
    check("ab", "../x");
}
