//! moto, a Python package that answers for AWS: started as a process of its own, behind a [`Front`] so
//! that it, too, can be away, slow or busy.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::front::{Asked, Front, Manner, Reply};
use super::keys::{Key, Keys};
use super::refusal::{Refusal, refused};
use crate::eventually;
use crate::http::{Connection, Request, Response};
use crate::server::log_path;

/// Ends moto when its input does: when it is dropped, and when this process is gone, however it went.
const KEEPER: &str = r#"trap "" INT TERM HUP
"$@" </dev/null & moto=$!
read -r _; kill -9 $moto"#;

/// Headers that are about one connection only.
const PER_CONNECTION: [&str; 5] = [
    "connection",
    "content-length",
    "date",
    "expect",
    "transfer-encoding",
];

/// A moto of its own: nothing is in it that the test has not put there.
#[derive(Debug)]
pub struct Moto {
    front: Front,
    keeper: Child,
    direct: SocketAddr,
}

impl Moto {
    /// Starts moto; elsewhere than under `cargo xtask test` perhaps `None`, and a word about it.
    pub fn start(keys: &Keys) -> Option<Self> {
        let Some(packages) = std::env::var_os("APPLIANCE_TEST_MOTO") else {
            eprintln!(
                "skipped: APPLIANCE_TEST_MOTO names no moto; `make test` sets it, and \
                 `cargo xtask moto` says to what"
            );
            return None;
        };
        let log = log_path("moto");
        let keeper = keeper(packages, &log);
        let mut told = None;
        eventually("moto listens", || {
            told = listens_at(&fs::read_to_string(&log).unwrap_or_default());
            told.is_some()
        });
        let direct = told.expect("it was told");
        let front = Front::start(keys.clock.clone(), move |asked| forwarded(asked, direct));
        Some(Self {
            front,
            keeper,
            direct,
        })
    }

    /// Where it is, its manners in between: for `AWS_ENDPOINT_URL`.
    pub fn url(&self) -> String {
        self.front.url()
    }

    /// Behaves like this from now on.
    pub fn behave(&self, manner: Manner) {
        self.front.behave(manner);
    }

    /// Answers the next `count` requests with an error, then goes on as before.
    pub fn fail_next(&self, count: usize, status: u16, code: &'static str) {
        self.front.fail_next(count, status, code);
    }

    /// What was asked so far by others than the test: `GetParametersByPath`, `GET /bucket/key`.
    pub fn asked(&self) -> Vec<String> {
        self.front.asked()
    }

    /// How often `action` was asked for.
    pub fn count(&self, action: &str) -> usize {
        self.front.count(action)
    }

    /// From now on signatures and policies are checked: a key must be one of moto's IAM, and must be
    /// allowed what it does.
    pub fn enforce(&self) {
        self.exchange(&asking("POST", "/moto-api/reset-auth").body("0"));
    }

    /// A key that may do what `policy` says and nothing else. Before [`Moto::enforce`].
    pub fn user(&self, name: &str, policy: &Value) -> Key {
        self.query("iam", &[("Action", "CreateUser"), ("UserName", name)]);
        self.query(
            "iam",
            &[
                ("Action", "PutUserPolicy"),
                ("UserName", name),
                ("PolicyName", "appliance"),
                ("PolicyDocument", &policy.to_string()),
            ],
        );
        let made = self.query("iam", &[("Action", "CreateAccessKey"), ("UserName", name)]);
        let part = |tag: &str| {
            let (_, rest) = made.split_once(&format!("<{tag}>"))?;
            Some(rest.split_once('<')?.0.to_owned())
        };
        Key {
            id: part("AccessKeyId").expect("a key has an id"),
            secret: part("SecretAccessKey").expect("a key has a secret"),
            token: None,
            expires: None,
        }
    }

    /// Puts a parameter, over one that is there.
    pub fn put_parameter(&self, name: &str, value: &str) {
        self.parameter(name, value, "String");
    }

    /// The same, encrypted.
    pub fn put_secret(&self, name: &str, value: &str) {
        self.parameter(name, value, "SecureString");
    }

    fn parameter(&self, name: &str, value: &str, kind: &str) {
        let body = json!({"Name": name, "Value": value, "Type": kind, "Overwrite": true});
        self.json("ssm", "AmazonSSM.PutParameter", &body);
    }

    /// Takes a parameter away.
    pub fn delete_parameter(&self, name: &str) {
        self.json("ssm", "AmazonSSM.DeleteParameter", &json!({"Name": name}));
    }

    /// The value of a parameter; `None` if there is none.
    pub fn read_parameter(&self, name: &str) -> Option<String> {
        let body = json!({"Name": name, "WithDecryption": true});
        let answer = self.exchange(&call("ssm", "AmazonSSM.GetParameter", &body));
        let value = answer.json()["Parameter"]["Value"].take();
        value.as_str().map(str::to_owned)
    }

    /// Makes a bucket.
    pub fn bucket(&self, name: &str) {
        let request = signed(asking("PUT", &format!("/{name}")), "s3").body(
            "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <LocationConstraint>us-west-2</LocationConstraint></CreateBucketConfiguration>",
        );
        good(&self.exchange(&request));
    }

    /// Puts an object.
    pub fn put_object(&self, bucket: &str, key: &str, bytes: impl Into<Vec<u8>>) {
        let request = signed(asking("PUT", &format!("/{bucket}/{key}")), "s3");
        good(&self.exchange(&request.body(bytes)));
    }

    /// The bytes of an object; `None` if there is none.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        let request = signed(asking("GET", &format!("/{bucket}/{key}")), "s3");
        let response = self.exchange(&request);
        (response.status() == 200).then_some(response.body)
    }

    /// Asks a service that speaks JSON; anything but a 200 fails the test.
    pub fn json(&self, service: &str, target: &str, body: &Value) -> Value {
        let response = self.exchange(&call(service, target, body));
        good(&response);
        response.json()
    }

    /// Asks a service that takes forms and answers in XML; anything but a 200 fails the test.
    pub fn query(&self, service: &str, fields: &[(&str, &str)]) -> String {
        let fields = fields.iter();
        let form: Vec<_> = fields
            .map(|(name, value)| format!("{name}={}", escaped(value)))
            .collect();
        let request = signed(asking("POST", "/"), service)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.join("&"));
        let response = self.exchange(&request);
        good(&response);
        response.text()
    }

    /// Asks moto itself, whatever its manner.
    fn exchange(&self, request: &Request) -> Response {
        let mut connection = Connection::open(self.direct).expect("moto listens");
        connection.exchange(request).expect("moto answers")
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().ok();
    }
}

/// Starts moto on a free port, with a shell that ends it when we do.
fn keeper(packages: OsString, log: &PathBuf) -> Child {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let file = File::create(log).expect("a file under target");
    Command::new("sh")
        .args(["-c", KEEPER, "sh"])
        .arg(python)
        .args([
            "-B",
            "-u",
            "-m",
            "moto.server",
            "-H",
            "127.0.0.1",
            "-p",
            "0",
        ])
        .env("PYTHONPATH", packages)
        // So many actions before policies count; a test says when.
        .env("INITIAL_NO_AUTH_ACTION_COUNT", "1000000")
        .stdin(Stdio::piped())
        .stdout(file.try_clone().expect("a second handle of a file"))
        .stderr(file)
        .spawn()
        .expect("a shell")
}

/// The address in ` * Running on http://127.0.0.1:41234`.
fn listens_at(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("Running on http://")?;
    // A line that is written to its end.
    let (address, _) = rest.split_once('\n')?;
    address.trim().parse().ok()
}

/// What moto answers to this.
fn forwarded(asked: &Asked, to: SocketAddr) -> Reply {
    let target = match asked.query.as_str() {
        "" => asked.path.clone(),
        query => format!("{}?{query}", asked.path),
    };
    let lasting = |name: &str| !PER_CONNECTION.contains(&name);
    let mut request = Request::bare(&asked.method, &target).header("connection", "close");
    for (name, value) in asked.headers.iter().filter(|(name, _)| lasting(name)) {
        request = request.header(name, value);
    }
    if !asked.body.is_empty() || ["PUT", "POST"].contains(&asked.method.as_str()) {
        request = request.body(asked.body.clone());
    }
    let answer = Connection::open(to).and_then(|mut connection| match asked.method.as_str() {
        "HEAD" => {
            connection.send(&request)?;
            let head = connection.head()?;
            let body = Vec::new();
            Ok(Response { head, body })
        }
        _ => connection.exchange(&request),
    });
    let response = match answer {
        Ok(response) => response,
        Err(error) => return Reply::new(502, "text/plain", error.to_string()),
    };
    if let Some(refusal) = refusal(asked, &response) {
        return refused(asked, &refusal);
    }
    let head = asked.method == "HEAD";
    let names = response.head.names().map(str::to_owned);
    let headers = names
        .filter(|name| lasting(name) || (head && name == "content-length"))
        .map(|name| {
            (
                name.clone(),
                response.header(&name).unwrap_or_default().to_owned(),
            )
        })
        .collect();
    Reply {
        status: response.status(),
        headers,
        body: response.body,
        hops: None,
    }
}

/// A refusal that moto has put into XML though it was asked in JSON, as it does whenever it checks who
/// asks.
fn refusal(asked: &Asked, response: &Response) -> Option<Refusal> {
    asked.header("x-amz-target")?;
    let text = std::str::from_utf8(&response.body).ok()?;
    let code = match text.split_once("<Code>")?.1.split_once('<')?.0 {
        "AccessDenied" => "AccessDeniedException",
        "SignatureDoesNotMatch" => "InvalidSignatureException",
        _ => "UnrecognizedClientException",
    };
    Some(Refusal::new(response.status(), code, text))
}

/// A request to this host: moto takes the first part of another for a bucket.
fn asking(method: &str, target: &str) -> Request {
    Request::bare(method, target).header("host", "localhost")
}

/// A call of a service that speaks JSON.
fn call(service: &str, target: &str, body: &Value) -> Request {
    signed(asking("POST", "/"), service)
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", target)
        .body(body.to_string())
}

/// The request as one of a service: moto reads from the signature which, and unless it is told to
/// does not check it.
fn signed(request: Request, service: &str) -> Request {
    let credential = format!("TEST/20260101/{}/{service}/aws4_request", super::REGION);
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=none");
    request.header("authorization", &authorization)
}

fn good(response: &Response) {
    assert_eq!(
        response.status(),
        200,
        "{}",
        String::from_utf8_lossy(&response.body)
    );
}

/// Text as it stands in a form.
fn escaped(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    });
    escaped.collect()
}
