//! How fast a checkpoint is streamed from a bucket, beside parallel ranges of curl from the same server:
//! `cargo bench -p appliance --bench objects -- DIRECTORY`.
//!
//! The bucket is an nginx on loopback whose document root holds the model's directory: for reading, that is
//! all that an object store is. `cargo bench -p model --bench stream` makes a checkpoint of 2 GiB under
//! `target/tmp/stream`, which is the directory unless another is named. Rounds alternate, and what is printed
//! are medians with the least and the greatest.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use appliance::objects::{FLOW, Listed, Object, Objects, Prefix};
use model::{Bytes, Decoder, Files, Flow, Role, Weights};

const ROUNDS: usize = 5;

/// Ranges that curl reads at once.
const CURLS: u64 = 8;

/// Bytes of a tensor that are looked at at once.
const BLOCK: usize = 8 << 20;

/// Where the server is, for the process that measures: the SDK reads its variables as it starts.
const SERVER: &str = "APPLIANCE_TEST_BENCH_SERVER";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let named = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stream");
    let directory = named.map_or(made, PathBuf::from).canonicalize()?;
    match std::env::var(SERVER) {
        Ok(server) => measure(&directory, &server),
        Err(_) => serve(&directory),
    }
}

/// Starts nginx, and this program again with the variables that lead there.
fn serve(directory: &Path) -> Result<()> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nginx");
    fs::create_dir_all(&scratch)?;
    let root = directory.parent().ok_or("the directory has a parent")?;
    let file = scratch.join("nginx.conf");
    fs::write(&file, config(&scratch, root, &address.to_string()))?;
    let mut nginx = Command::new("nginx");
    nginx
        .arg("-c")
        .arg(&file)
        .arg("-p")
        .arg(&scratch)
        .stderr(Stdio::null());
    let Ok(child) = nginx.spawn() else {
        println!("skipped: there is no nginx on PATH (Debian: nginx-light)");
        return Ok(());
    };
    let _nginx = Ended(child);
    let start = Instant::now();
    while TcpStream::connect(address).is_err() {
        if start.elapsed() > Duration::from_secs(10) {
            return Err("nginx does not listen".into());
        }
        std::thread::yield_now();
    }
    let status = Command::new(std::env::current_exe()?)
        .arg(directory)
        .env(SERVER, address.to_string())
        .env("AWS_ENDPOINT_URL", format!("http://{address}"))
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "nobody")
        .env("AWS_SECRET_ACCESS_KEY", "nothing")
        .status()?;
    let well = status.success().then_some(());
    well.ok_or_else(|| "the measurement failed".into())
}

fn config(scratch: &Path, root: &Path, address: &str) -> String {
    let (scratch, root) = (scratch.display(), root.display());
    format!(
        "daemon off; worker_processes 1; user root; pid {scratch}/pid; error_log {scratch}/error.log;
events {{}}
http {{
    access_log off; sendfile on;
    client_body_temp_path {scratch}; proxy_temp_path {scratch}; fastcgi_temp_path {scratch};
    uwsgi_temp_path {scratch}; scgi_temp_path {scratch};
    server {{ listen {address}; location /bucket/ {{ alias {root}/; }} }}
}}"
    )
}

fn measure(directory: &Path, server: &str) -> Result<()> {
    let decoder = Decoder::open(directory)?;
    let name = directory.file_name().ok_or("the directory has a name")?;
    let name = name.to_string_lossy();
    let bytes = fs::metadata(directory.join("model.safetensors"))?.len();
    let url = format!("http://{server}/bucket/{name}/model.safetensors");
    let bucket = Bucket {
        objects: Objects::open()?,
        prefix: format!("bucket/{name}").parse()?,
        etag: etag(&url)?,
        bytes,
    };
    let (mut curl, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        curl.push(rate(bytes, || curls(&url, bytes))?);
        ours.push(rate(bytes, || stream(&bucket, &decoder))?);
    }
    println!("{} MiB, {ROUNDS} rounds, GB/s:", bytes >> 20);
    println!("  {CURLS} ranges of curl: {}", told(&mut curl));
    println!("  streamed by tensor: {}", told(&mut ours));
    println!("  ratio of medians: {:.2}", median(&ours) / median(&curl));
    println!("  peak memory: {} MiB", memory() >> 10);
    Ok(())
}

/// The checkpoint's one file, in the bucket.
struct Bucket {
    objects: Objects,
    prefix: Prefix,
    etag: String,
    bytes: u64,
}

impl Files for Bucket {
    fn open(&self, name: &str) -> io::Result<Arc<dyn Bytes>> {
        if name != "model.safetensors" {
            return Err(io::ErrorKind::NotFound.into());
        }
        let listed = Listed {
            name: name.to_owned(),
            size: self.bytes,
            etag: self.etag.clone(),
        };
        Ok(Arc::new(Object::new(&self.objects, &self.prefix, &listed)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.prefix.url(name).into()
    }

    fn flow(&self) -> Flow {
        FLOW
    }
}

/// The tag of what is at `url` now.
fn etag(url: &str) -> Result<String> {
    let head = Command::new("curl").args(["-sI", url]).output()?;
    let head = String::from_utf8_lossy(&head.stdout).into_owned();
    let tag = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("etag")
            .then(|| value.trim().to_owned())
    });
    tag.ok_or_else(|| format!("nginx gives no tag: {head}").into())
}

/// Reads equal ranges at once, each with a curl of its own.
fn curls(url: &str, bytes: u64) -> Result<()> {
    let part = bytes.div_ceil(CURLS);
    let started = (0..CURLS).map(|index| {
        let (from, to) = (index * part, ((index + 1) * part).min(bytes) - 1);
        let mut curl = Command::new("curl");
        curl.args([
            "-s",
            "-f",
            "-o",
            "/dev/null",
            "-r",
            &format!("{from}-{to}"),
            url,
        ]);
        curl.spawn()
    });
    for mut child in started.collect::<io::Result<Vec<_>>>()? {
        child.wait()?.success().then_some(()).ok_or("curl failed")?;
    }
    Ok(())
}

/// Reads every tensor in the order of the decoder, some rows at a time.
fn stream(bucket: &Bucket, decoder: &Decoder) -> Result<()> {
    let weights = Weights::of(bucket, decoder)?;
    let order: Vec<Role> = decoder.roles().map(|(role, _)| role).collect();
    let stream = weights.stream(order.iter().copied())?;
    for role in order {
        let (dtype, shape) = weights.shape(role);
        let (count, width) = match *shape {
            [rows, columns] => (rows, columns * dtype.size()),
            _ => (1, BLOCK),
        };
        let most = (BLOCK / width).max(1);
        for first in (0..count).step_by(most) {
            std::hint::black_box(stream.rows(role, first..count.min(first + most))?);
        }
    }
    Ok(())
}

/// Bytes a second, in GB.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn rate(bytes: u64, read: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    read()?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64() / 1e9)
}

fn told(rates: &mut [f64]) -> String {
    rates.sort_by(f64::total_cmp);
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    format!("{:.2} ({least:.2} to {most:.2})", median(rates))
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// The most memory that this process has had, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

/// A process that ends when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Its workers end with it only if it is asked to end.
        Command::new("kill")
            .arg(self.0.id().to_string())
            .status()
            .ok();
        self.0.wait().ok();
    }
}
