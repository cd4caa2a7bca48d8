//! TLS in the server itself: who connects sees our certificate, and the next one once it is there.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use appliance_tests::server::scratch_file;
use appliance_tests::{Model, PATIENCE, Request, Server, appliance, eventually};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::COMPLETIONS;

/// A certificate for `appliance.test`, and its key, as PEM.
struct Made {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

fn make() -> Made {
    let names = vec!["appliance.test".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    Made {
        certificate: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
        der: made.cert.der().clone(),
    }
}

/// The files of a server.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(name: &str, made: &Made) -> Self {
        Self {
            certificate: scratch_file(&format!("{name}.crt"), &made.certificate),
            key: scratch_file(&format!("{name}.key"), &made.key),
        }
    }

    fn flags(&self) -> [&str; 4] {
        let [certificate, key] =
            [&self.certificate, &self.key].map(|path| path.to_str().expect("a path of ASCII"));
        ["--tls-certificate", certificate, "--tls-key", key]
    }
}

type Private = StreamOwned<ClientConnection, TcpStream>;

/// Connects as a client that trusts `made` and no other; speaks one of `protocols`.
fn connect(server: &Server, made: &Made, protocols: &[&str]) -> Result<Private, String> {
    let mut roots = RootCertStore::empty();
    roots.add(made.der.clone()).expect("a certificate");
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config
        .with_safe_default_protocol_versions()
        .expect("versions");
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let name = ServerName::try_from("appliance.test").expect("a name");
    let client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let socket = TcpStream::connect(server.address).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut stream = StreamOwned::new(client, socket);
    while stream.conn.is_handshaking() {
        let done = stream.conn.complete_io(&mut stream.sock);
        done.map_err(|error| error.to_string())?;
    }
    Ok(stream)
}

/// Sends a request over HTTP/1.1 and reads until the server closes.
fn exchange(stream: &mut Private, request: Request) -> String {
    let request = request.header("connection", "close");
    stream
        .write_all(&request.bytes())
        .expect("the server reads");
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => panic!("{error} after {}", String::from_utf8_lossy(&answer)),
    }
    String::from_utf8(answer).expect("UTF-8")
}

fn start(files: &Files) -> Server {
    let model = Model::chain();
    let model: [&str; 2] = ["--model", model.path.to_str().expect("a path of ASCII")];
    let server = Server::instance(&[], &[&model, &files.flags()[..]].concat());
    eventually("the server is ready", || server.log().contains(" ready "));
    server
}

#[test]
fn requests_and_streams_go_over_tls() {
    let made = make();
    let server = start(&Files::new("plain-tls", &made));
    let mut stream = connect(&server, &made, &["http/1.1"]).expect("a connection");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let body =
        serde_json::json!({"prompt": "a", "max_tokens": 20, "temperature": 0, "stream": true});
    let answer = exchange(&mut stream, Request::post(COMPLETIONS, &body));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("data: [DONE]"), "{answer}");
    assert_eq!(answer.matches("data: {").count(), 21, "{answer}");
}

#[test]
fn http_2_is_agreed_on_and_spoken() {
    let made = make();
    let server = start(&Files::new("h2-tls", &made));
    let mut stream = connect(&server, &made, &["h2", "http/1.1"]).expect("a connection");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    // The preface and an empty SETTINGS frame; the answer is a SETTINGS frame, whose type is 4.
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(begin).expect("the server reads");
    let mut head = [0; 9];
    stream.read_exact(&mut head).expect("a frame");
    assert_eq!(head[3], 4, "{head:?}");
}

#[test]
fn who_speaks_no_tls_or_nothing_gets_nothing_and_others_do() {
    let made = make();
    let server = start(&Files::new("no-tls", &made));
    let mut silent = TcpStream::connect(server.address).expect("a connection");
    let mut plain = TcpStream::connect(server.address).expect("a connection");
    plain
        .write_all(&Request::get("/health").bytes())
        .expect("the server reads");
    let mut answer = Vec::new();
    // A TLS alert at the most, or a reset.
    plain.read_to_end(&mut answer).ok();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let mut stream = connect(&server, &made, &["http/1.1"]).expect("a connection");
    assert!(exchange(&mut stream, Request::get("/health")).starts_with("HTTP/1.1 200 "));
    // The handshake has ten seconds.
    silent.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert_eq!(silent.read(&mut [0]).expect("an end"), 0);
}

#[test]
fn a_new_certificate_is_shown_without_a_drop_and_a_bad_one_is_not() {
    let (old, new) = (make(), make());
    let files = Files::new("renewed", &old);
    let server = start(&files);
    let mut kept = connect(&server, &old, &["http/1.1"]).expect("a connection");
    // Half a renewal: the two do not belong together.
    fs::write(&files.certificate, &new.certificate).expect("the certificate");
    eventually("it is told", || {
        server.log().contains("the certificate of before stays")
    });
    connect(&server, &old, &["http/1.1"]).expect("the certificate of before");
    fs::write(&files.key, &new.key).expect("the key");
    eventually("the new one is shown", || {
        connect(&server, &new, &["http/1.1"]).is_ok()
    });
    connect(&server, &old, &["http/1.1"])
        .map(drop)
        .expect_err("the old one is gone");
    let answer = exchange(&mut kept, Request::get("/health"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn bad_files_end_the_start_and_say_what_to_do() {
    let (made, other) = (make(), make());
    let model = Model::chain();
    let model = model.path.to_str().expect("a path of ASCII");
    let refused = |files: &Files, told: &[&str]| {
        let serve = ["serve", "--model", model, "--listen", "127.0.0.1:0"];
        let ended = appliance(serve.iter().chain(&files.flags()));
        assert_eq!(ended.code, Some(64), "{ended:?}");
        for told in told {
            assert!(ended.stderr.contains(told), "{told}: {ended:?}");
        }
    };
    let file = |name: &str, text: &str| scratch_file(name, text);
    let mut files = Files::new("bad-tls", &made);
    files.key = file("other.key", &other.key);
    refused(&files, &["does not go with", "other.key"]);
    files.key = file(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIF\n",
    );
    refused(&files, &["encrypted", "openssl pkey -in"]);
    files.key = file("empty.key", "");
    refused(&files, &["empty.key", "private key"]);
    files.key = PathBuf::from("no/such.key");
    refused(&files, &["no/such.key"]);
    let mut files = Files::new("bad-tls", &made);
    files.certificate = file("text.crt", "hello");
    refused(&files, &["text.crt", "certificates"]);
    let alone = ["serve", "--model", model, "--tls-key", "a"];
    let ended = appliance(alone);
    assert!(ended.stderr.contains("belong together"), "{ended:?}");
}
