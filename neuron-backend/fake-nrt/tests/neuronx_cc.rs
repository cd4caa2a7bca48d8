//! The stand-in for `neuronx-cc` as a program: what it takes, writes, refuses and leaves behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use graph::build::Builder;
use graph::proto::HloModule;
use graph::{Element, Target};
use nrt::neff::{Neff, NeffError};
use tempfile::TempDir;

/// A working directory with a module in it.
struct Bench {
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Bench {
    fn new(module: &HloModule) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("graph.hlo"), module.to_bytes()).unwrap();
        Self {
            folder,
            environment: Vec::new(),
        }
    }

    /// The same with something that goes wrong.
    fn with(mut self, mischief: &str) -> Self {
        self.environment
            .push(("FAKE_NEURONX_CC", mischief.to_owned()));
        self
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fake-neuronx-cc"));
        command
            .args(["compile", "graph.hlo", "--framework", "XLA"])
            .args(["--target", "trn2", "--output", "graph.neff"])
            .args(more)
            .current_dir(self.folder.path())
            .env_remove("FAKE_NEURONX_CC")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn neff(&self) -> Result<Neff, NeffError> {
        Neff::read(&fs::read(self.path("graph.neff")).unwrap())
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `values` and `columns` of the largest eight of 64.
fn top_k() -> HloModule {
    let mut b = Builder::new("top");
    let x = b.parameter("x", "x", Element::F32, &[2, 64]).unwrap();
    let (values, columns) = b.top_k(&x, 8).unwrap();
    b.finish(&[("values", values), ("columns", columns)], &[])
        .unwrap()
}

/// A module that `neuronx-cc` refuses: its output has no name.
fn nameless() -> HloModule {
    let mut module = top_k();
    let entry = module.computations.last_mut().unwrap();
    let root = entry.root_id;
    let root = entry.instructions.iter_mut().find(|one| one.id == root);
    root.unwrap().frontend_attributes = None;
    module
}

#[test]
fn a_module_becomes_a_neff_that_says_what_it_is() {
    let bench = Bench::new(&top_k());
    let output = bench.run(&["--lnc=1", "--model-type=transformer", "-O2"]);
    assert!(output.status.success(), "{}", said(&output));
    let neff = bench.neff().unwrap();
    assert_eq!(
        (neff.info.target.as_str(), neff.info.lnc, neff.info.ranks),
        ("trn2", 1, 1)
    );
    assert_eq!(neff.info.name, "graph.neff");
    assert_eq!(HloModule::from_bytes(&neff.module).unwrap(), top_k());
    assert_eq!(neff.io.outputs[1].element, Element::U32);
}

#[test]
fn the_ranks_are_those_of_its_collectives() {
    let mut b = Builder::new("sum");
    let x = b.parameter("x", "x", Element::F32, &[8]).unwrap();
    let sum = b.all_reduce(&x, 4).unwrap();
    let bench = Bench::new(&b.finish(&[("sum", sum)], &[]).unwrap());
    let output = bench.run(&[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(bench.neff().unwrap().header.requested_cores, 4);
}

#[test]
fn it_leaves_things_lying_about() {
    let bench = Bench::new(&top_k());
    bench.run(&["--logfile", "words.txt"]);
    let log = fs::read_to_string(bench.path("words.txt")).unwrap();
    assert!(log.contains("2.27.5334.0") && log.contains("PASS"), "{log}");
    let left = fs::read_dir(bench.folder.path()).unwrap();
    let left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        left.iter().any(|name| name.starts_with("neuronxcc-")),
        "{left:?}"
    );
    assert!(
        left.contains(&"global_metric_store.json".to_owned()),
        "{left:?}"
    );
}

#[test]
fn a_module_that_breaks_a_rule_is_refused_by_its_name() {
    let bench = Bench::new(&nameless());
    let output = bench.run(&[]);
    assert_eq!(output.status.code(), Some(70));
    assert!(said(&output).contains("OutputNames"), "{}", said(&output));
    assert!(!bench.path("graph.neff").exists());
}

/// The flag and the target decide about F8E4M3FN.
#[test]
fn rules_are_those_of_the_target_and_the_flags() {
    let mut b = Builder::new("fp8");
    let x = b.parameter("x", "x", Element::F8e4m3fn, &[8]).unwrap();
    let wide = b.convert(&x, Element::F32).unwrap();
    let bench = Bench::new(&b.finish(&[("wide", wide)], &[]).unwrap());
    let flag = "--internal-hlo2tensorizer-options=--experimental-unsafe-fp8e4m3fn-as-fp8e4m3";
    let refused = bench.run(&[]);
    assert!(said(&refused).contains("NCC_EVRF051"), "{}", said(&refused));
    assert!(bench.run(&[flag]).status.success());
    assert!(
        bench
            .run(&["--target", Target::Trn3.name()])
            .status
            .success()
    );
}

/// The rules cannot know everything: here they do not look, and XLA does.
#[test]
fn xla_refuses_what_the_rules_let_pass() {
    if std::env::var_os("APPLIANCE_XLA_CPU").is_none() {
        eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
        return;
    }
    let mut module = top_k();
    module.entry_computation_name = "nothing".to_owned();
    let entry = module.computations.last_mut().unwrap();
    entry.program_shape = None;
    let bench = Bench::new(&module);
    let output = bench.run(&[]);
    assert_eq!(output.status.code(), Some(70), "{}", said(&output));
    assert!(said(&output).contains("ERROR"), "{}", said(&output));
}

#[test]
fn what_xla_made_goes_into_the_neff() {
    if std::env::var_os("APPLIANCE_XLA_CPU").is_none() {
        eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
        return;
    }
    let key = |module: &HloModule, more: &[&str]| {
        let bench = Bench::new(module);
        let output = bench.run(more);
        assert!(output.status.success(), "{}", said(&output));
        bench.neff().unwrap().compiled.map(|compiled| compiled.key)
    };
    let plain = key(&top_k(), &[]);
    assert!(plain.is_some());
    assert_eq!(key(&top_k(), &["--lnc=1"]), plain);
    let mut renamed = top_k();
    renamed.name = "other".to_owned();
    assert_ne!(key(&renamed, &[]), plain);
    let unverified = "--internal-hlo2tensorizer-options=--verify-hlo=false";
    assert_eq!(key(&top_k(), &[unverified]), None);
}

#[test]
fn without_xla_a_warning_is_given() {
    let bench = Bench::new(&top_k());
    let output = bench
        .command(&[])
        .env_remove("APPLIANCE_XLA_CPU")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(
        said(&output).contains("APPLIANCE_XLA_CPU"),
        "{}",
        said(&output)
    );
    assert_eq!(bench.neff().unwrap().compiled, None);
}

#[test]
fn what_is_no_module_or_no_file_is_refused() {
    let bench = Bench::new(&top_k());
    fs::write(bench.path("graph.hlo"), [0xff; 7]).unwrap();
    assert_eq!(bench.run(&[]).status.code(), Some(70));
    fs::remove_file(bench.path("graph.hlo")).unwrap();
    let output = bench.run(&[]);
    assert!(said(&output).contains("graph.hlo"), "{}", said(&output));
}

#[test]
fn a_flag_that_nobody_knows_is_refused() {
    let output = Bench::new(&top_k()).run(&["--fast"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("unrecognized arguments: --fast"));
}

#[test]
fn it_says_its_version_first() {
    let output = Command::new(env!("CARGO_BIN_EXE_fake-neuronx-cc"))
        .arg("--version")
        .env("FAKE_NEURONX_CC", "version=2.28.1.0+x")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text.lines().next(),
        Some("NeuronX Compiler version 2.28.1.0+x")
    );
}

#[test]
fn it_fails_as_it_is_told() {
    let ended = |mischief: &str| Bench::new(&top_k()).with(mischief).run(&[]);
    assert_eq!(ended("exit70").status.code(), Some(70));
    let lacking = ended("f137");
    assert_eq!(lacking.status.code(), Some(70));
    assert!(said(&lacking).contains("[F137]"), "{}", said(&lacking));
    assert_eq!(ended("killed").status.signal(), Some(9));
    assert_eq!(ended("abort").status.signal(), Some(6));
    assert_eq!(ended("segfault").status.signal(), Some(11));
    assert!(ended("killed@other").status.success());
    assert_eq!(ended("exit71").status.code(), Some(64));
}

#[test]
fn what_happens_once_does_not_happen_again() {
    let bench = Bench::new(&top_k()).with("exit70:once=marker");
    assert_eq!(bench.run(&[]).status.code(), Some(70));
    assert!(bench.run(&[]).status.success());
}

#[test]
fn neffs_are_spoiled_as_it_is_told() {
    let written = |mischief: &str| {
        let bench = Bench::new(&top_k()).with(mischief);
        let output = bench.run(&[]);
        assert!(output.status.success(), "{mischief}: {}", said(&output));
        bench
    };
    assert!(matches!(
        written("garbage").neff(),
        Err(NeffError::Header(_))
    ));
    assert!(matches!(
        written("truncated").neff(),
        Err(NeffError::Size { .. })
    ));
    assert!(matches!(
        written("newer").neff(),
        Err(NeffError::Version { .. })
    ));
    assert!(!written("nothing").path("graph.neff").exists());
}

/// The words of `/proc/PID/stat` after the name, of all processes of a group.
fn alive(group: u32) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let of_group = stats.filter(|stat| {
        let words = stat.rsplit_once(')').map_or("", |(_, words)| words);
        let mut words = words.split_whitespace();
        let state = words.next();
        state != Some("Z") && words.nth(1) == Some(&group.to_string())
    });
    of_group.count()
}

fn kill(name: &str, group: u32) {
    let script = format!("kill -{name} -{group}");
    let status = Command::new("sh").args(["-c", &script]).status();
    assert!(status.unwrap().success());
}

/// Waits until a group has so many processes.
fn wait_for(group: u32, count: usize) {
    let start = Instant::now();
    while alive(group) != count {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{} processes",
            alive(group)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_that_hangs_heeds_only_what_kills_its_group() {
    let bench = Bench::new(&top_k()).with("hang");
    let mut child: Child = bench
        .command(&[])
        .process_group(0)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let group = child.id();
    // Itself and what it started.
    wait_for(group, 2);
    kill("TERM", group);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(alive(group), 2);
    kill("KILL", group);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    wait_for(group, 0);
}
