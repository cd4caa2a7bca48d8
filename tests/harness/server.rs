//! The server as a process: started, watched, signalled, ended.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::http::{Connection, Request, Response};
use crate::metrics::Metrics;
use crate::models::{ENDLESS, Model, directory_in, scratch, target};
use crate::neuron::Fake;
use crate::sse::Stream;
use crate::{PATIENCE, eventually, within};

/// The binary under test: `APPLIANCE_BIN`, or the one beside this test binary.
fn binary() -> PathBuf {
    let named = std::env::var_os("APPLIANCE_BIN").map(PathBuf::from);
    let path = named.unwrap_or_else(|| target().join("appliance"));
    assert!(
        path.is_file(),
        "no binary {}: `cargo build -p appliance` or set APPLIANCE_BIN",
        path.display()
    );
    path
}

/// The binary with an environment that no setting of the developer's reaches into.
fn command() -> Command {
    bare(&binary())
}

fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    let settings = std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("APPLIANCE_") || name.starts_with("AWS_")
    });
    for name in settings {
        command.env_remove(name);
    }
    // A test that wants an account brings one: see `aws::Account`.
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    // What it keeps is kept for this test binary only.
    command.env(
        "APPLIANCE_STATE_DIR",
        directory_in("state", &std::process::id().to_string()),
    );
    command.stdin(Stdio::null());
    command
}

/// Has the server run on the device that `APPLIANCE_TEST_BACKEND` names; `neuron-fake` is the Neuron
/// backend on its stand-ins.
fn backend(command: &mut Command, model: &Model) {
    let Some(backend) = std::env::var_os("APPLIANCE_TEST_BACKEND") else {
        return;
    };
    if backend != "neuron-fake" {
        command.arg("--backend").arg(backend);
        return;
    }
    let fake = Fake::found().expect("the stand-ins, as `make test` builds them");
    let bundles = fake.prepared(model, 1, &[]);
    command
        .args(["--backend", "neuron", "--artifacts"])
        .arg(bundles);
    command.envs(fake.environment());
}

/// How a run of the binary ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Runs `appliance ARGS..` to its end, which must come within [`PATIENCE`].
pub fn appliance<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    let mut command = command();
    command.args(args);
    end_of(&mut command)
}

/// The same with environment variables.
pub fn appliance_with<S: AsRef<OsStr>>(
    variables: &[(&str, &str)],
    args: impl IntoIterator<Item = S>,
) -> Ended {
    let mut command = command();
    command.args(args).envs(variables.iter().copied());
    end_of(&mut command)
}

fn end_of(command: &mut Command) -> Ended {
    let (out, err) = (log_path("out"), log_path("err"));
    let open = |path| File::create(path).expect("a file under target");
    let mut child = command
        .stdout(open(&out))
        .stderr(open(&err))
        .spawn()
        .expect("the binary runs");
    let status = ended_within(&mut child, PATIENCE);
    if status.is_none() {
        child.kill().ok();
    }
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let (stdout, stderr) = (read(out), read(err));
    let status = status.unwrap_or_else(|| panic!("{command:?} does not end: {stdout}{stderr}"));
    Ended {
        code: status.code(),
        stdout,
        stderr,
    }
}

fn ended_within(child: &mut Child, bound: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        let status = child.try_wait().expect("a child can be waited for");
        if status.is_some() || start.elapsed() > bound {
            return status;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn log_path(kind: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let directory = scratch().join("logs");
    fs::create_dir_all(&directory).expect("a directory under target");
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("{}-{count}.{kind}", std::process::id()))
}

/// A file of `text` under `target` whose name ends in `name`, for a run of the binary to read.
pub fn scratch_file(name: &str, text: &str) -> PathBuf {
    let path = scratch().join(format!("{}-{name}", std::process::id()));
    fs::create_dir_all(scratch()).expect("a directory under target");
    fs::write(&path, text).expect("a file under target");
    path
}

/// An empty directory under `target` whose name ends in `name`.
pub fn scratch_directory(name: &str) -> PathBuf {
    let path = scratch().join(format!("{}-{name}", std::process::id()));
    fs::remove_dir_all(&path).ok();
    fs::create_dir_all(&path).expect("a directory under target");
    path
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The id of its model, as `/v1/models` says.
    pub model: String,
    pid: Pid,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Server {
    /// Starts `appliance serve` on a free port and waits until it is ready.
    pub fn start(model: &Model, flags: &[&str]) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), model, flags)
    }

    /// The same with environment variables.
    pub fn start_with(environment: &[(&str, OsString)], model: &Model, flags: &[&str]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::started(address, environment, model, flags)
    }

    /// The same on a port that the test has chosen.
    pub fn start_at(address: SocketAddr, model: &Model, flags: &[&str]) -> Self {
        Self::started(address, &[], model, flags)
    }

    fn started(
        address: SocketAddr,
        environment: &[(&str, OsString)],
        model: &Model,
        flags: &[&str],
    ) -> Self {
        let mut server = Self::spawn(address, environment, Some(model), flags);
        server.await_address();
        server.await_ready();
        server
    }

    /// Starts `appliance serve` on a free port, as what starts an instance does: no flag names a model.
    /// Waits until it listens.
    pub fn instance(environment: &[(&str, OsString)], flags: &[&str]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self::spawn(address, environment, None, flags);
        server.await_address();
        server
    }

    /// The id of the model that serves now.
    pub fn serves(&self) -> Option<String> {
        let models = self.get("/v1/models");
        let name = models.json()["data"][0]["id"].as_str().map(str::to_owned);
        name.filter(|_| models.status() == 200)
    }

    /// The same for a static: the process ends when this test binary ends, however it ends.
    pub fn shared(model: &Model, flags: &[&str]) -> Self {
        let server = Self::start(model, flags);
        end_with_this_process(server.pid);
        server
    }

    /// Starts `appliance serve` and does not wait.
    fn spawn(
        address: SocketAddr,
        environment: &[(&str, OsString)],
        model: Option<&Model>,
        flags: &[&str],
    ) -> Self {
        Self::spawn_as(command(), address, environment, model, flags)
    }

    /// The same through a shell that executes `script`, whose arguments are the command line of the
    /// server: it ends with `exec "$@"`. Waits until it listens.
    pub fn through(
        script: &str,
        stdin: Stdio,
        address: SocketAddr,
        environment: &[(&str, OsString)],
        model: &Model,
        flags: &[&str],
    ) -> Self {
        let mut shell = bare(Path::new("sh"));
        shell.args(["-c", script, "sh"]).arg(binary()).stdin(stdin);
        let mut server = Self::spawn_as(shell, address, environment, Some(model), flags);
        server.await_address();
        server
    }

    fn spawn_as(
        mut command: Command,
        address: SocketAddr,
        environment: &[(&str, OsString)],
        model: Option<&Model>,
        flags: &[&str],
    ) -> Self {
        let log = log_path("log");
        let file = File::create(&log).expect("a file under target");
        command
            .arg("serve")
            .arg("--listen")
            .arg(address.to_string());
        if let Some(model) = model {
            command.arg("--model").arg(&model.path);
            backend(&mut command, model);
        }
        let child = command
            .args(flags)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(file.try_clone().expect("a second handle of a file"))
            .stderr(file)
            .spawn()
            .expect("the binary runs");
        let pid = Pid::from_raw(child.id().try_into().expect("a pid is positive"));
        Self {
            address,
            model: model.map(name_of).unwrap_or_default(),
            pid,
            child: Mutex::new(child),
            log,
        }
    }

    /// Waits until the log says where it listens. The kernel gives the server a free port: one that
    /// is looked for beforehand may be taken by then.
    fn await_address(&mut self) {
        eventually("the server listens", || {
            let told = listens_at(&self.log());
            if told.is_none() {
                self.assert_runs();
            }
            self.address = told.unwrap_or(self.address);
            told.is_some()
        });
    }

    /// Waits until it is ready.
    pub fn await_ready(&mut self) {
        eventually("the server is ready", || {
            self.assert_runs();
            // One that starts itself again is given another port.
            self.address = listens_at(&self.log()).unwrap_or(self.address);
            self.try_exchange(&Request::get("/health"))
                .is_ok_and(|health| health.status() == 200)
        });
        // Whoever has no key is not told: then it is what it was started with, if anything.
        match self.get("/v1/models").status() {
            401 => {}
            _ => self.model = self.serves().expect("a model has an id"),
        }
    }

    fn assert_runs(&self) {
        if let Some(status) = self.ended() {
            let log = self.log();
            panic!("the server ended before it was ready ({status}): {log}");
        }
    }

    /// Opens a connection.
    pub fn connect(&self) -> Connection {
        Connection::open(self.address)
            .unwrap_or_else(|error| panic!("no connection ({error}): {}", self.log_end()))
    }

    /// Sends a request on a connection of its own and reads the answer.
    pub fn try_exchange(&self, request: &Request) -> io::Result<Response> {
        Connection::open(self.address)?.exchange(request)
    }

    /// The same; no answer fails the test with the end of the server's log.
    pub fn exchange(&self, request: &Request) -> Response {
        self.try_exchange(request)
            .unwrap_or_else(|error| panic!("no answer ({error}): {}", self.log_end()))
    }

    /// `GET target`.
    pub fn get(&self, target: &str) -> Response {
        self.exchange(&Request::get(target))
    }

    /// `POST target` with a JSON body.
    pub fn post(&self, target: &str, body: &Value) -> Response {
        self.exchange(&Request::post(target, body))
    }

    /// The answer to `POST target` as JSON; anything but a 200 fails the test.
    pub fn ask(&self, target: &str, body: &Value) -> Value {
        let response = self.post(target, body);
        assert_eq!(response.status(), 200, "{body} -> {}", response.text());
        response.json()
    }

    /// The answer to `POST target` as a stream of events, whose head has come.
    pub fn stream(&self, target: &str, body: &Value) -> Stream {
        let mut connection = self.connect();
        connection
            .send(&Request::post(target, body))
            .expect("the server reads the request");
        connection
            .stream()
            .unwrap_or_else(|error| panic!("no stream ({error}): {}", self.log_end()))
    }

    /// Takes a place and keeps it until it is dropped: a stream whose prompt no test sees the end
    /// of. It has nothing to say meanwhile, so nobody need read it. A stream of tokens would be
    /// paused, and give up its place to whoever waits, once it is ahead of its reader or of the
    /// server's own tasks, which on a loaded machine it soon is. For servers of
    /// [`Model::endless`].
    pub fn hold(&self) -> Stream {
        let mut body = self.endless();
        body["stream"] = true.into();
        let stream = self.stream("/v1/completions", &body);
        assert_eq!(stream.head.status, 200);
        stream
    }

    /// The body of a completion whose prompt no test sees the end of.
    pub fn endless(&self) -> Value {
        assert_eq!(self.model, "endless", "only its prompts are endless");
        json!({"model": self.model, "prompt": vec![b'a'; ENDLESS as usize - 1]})
    }

    /// A stream that only a test that wants to reads: the kernel holds little of it, so that it is
    /// paused once the buffers between the two ends are full. Its tokens are `bcd..` round the
    /// alphabet of [`Model::chain`].
    pub fn unread(&self, tokens: u32) -> Stream {
        let body = json!({
            "model": self.model,
            "prompt": "a",
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": true,
            "logprobs": 5,
            "stream": true,
        });
        let mut connection = self.connect().narrow().expect("a socket has a buffer");
        connection
            .send(&Request::post("/v1/completions", &body))
            .expect("the server reads the request");
        connection.stream().expect("the head of a stream")
    }

    /// A scrape of `/metrics`.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").text()).expect("the text format")
    }

    /// Waits until no request runs or waits and no page is held; fails after `bound`.
    pub fn idle_within(&self, bound: Duration) {
        const GAUGES: [&str; 3] = [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
        ];
        within(bound, "nothing runs, waits or holds a page", || {
            let metrics = self.metrics();
            GAUGES.iter().all(|gauge| metrics.value(gauge) == 0.0)
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("the server's process exists");
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().expect("no thread panics holding it");
        child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end, which must come within `bound`: its exit code, or minus the signal.
    pub fn exit_code_within(&self, bound: Duration) -> i32 {
        within(bound, "the server ends", || self.ended().is_some());
        let status = self.ended().expect("it has ended");
        status
            .code()
            .or(status.signal().map(|signal| -signal))
            .expect("a code or a signal")
    }

    /// Bytes of memory it holds now (`VmRSS` of `/proc/PID/status`).
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid);
        let status = fs::read_to_string(path).expect("the server's process exists");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a process has a VmRSS line") * 1024
    }

    /// Files and sockets it has open.
    pub fn open_files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.pid);
        fs::read_dir(path)
            .expect("the server's process exists")
            .count()
    }

    /// All that it wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(4000);
        let from = (from..log.len()).find(|at| log.is_char_boundary(*at));
        format!("the log ends: {}", &log[from.unwrap_or(log.len())..])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(child) = self.child.get_mut() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// What a model is called unless it is told otherwise.
fn name_of(model: &Model) -> String {
    let name = model.path.file_name().expect("a directory has a name");
    name.to_string_lossy().into_owned()
}

/// The latest address in the log of a server, once a whole line has it.
fn listens_at(log: &str) -> Option<SocketAddr> {
    let (lines, _) = log.rsplit_once('\n')?;
    let (_, address) = lines.rsplit_once("address=")?;
    address.split_whitespace().next()?.parse().ok()
}

/// Statics are never dropped, so a shell on the other end of a pipe kills what is left when this
/// process, and with it the pipe, is gone.
fn end_with_this_process(pid: Pid) {
    const REAPER: &str = r#"trap "" INT TERM HUP
while read -r pid; do pids="$pids $pid"; done
for pid in $pids; do
  case "$(cat "/proc/$pid/comm")" in appliance*) kill -9 "$pid" ;; esac
done"#;
    static PIPE: OnceLock<Mutex<Child>> = OnceLock::new();
    let reaper = PIPE.get_or_init(|| {
        let child = Command::new("sh")
            .args(["-c", REAPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        Mutex::new(child)
    });
    let mut reaper = reaper.lock().expect("no thread panics holding it");
    let pipe = reaper.stdin.as_mut().expect("its input is a pipe");
    writeln!(pipe, "{pid}").expect("the shell reads");
}
