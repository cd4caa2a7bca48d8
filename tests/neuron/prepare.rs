//! `appliance prepare` as a user runs it, with a `neuronx-cc` that stands in for the real one and
//! fails as that does (`neuron-backend/fake-nrt/src/neuronx_cc`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use appliance_tests::golden::Family;
use appliance_tests::neuron::fresh;
use appliance_tests::{Ended, Model, appliance, eventually, server};
use neuron_backend::artifact::Bundle;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What is compiled: five modules.
const FORM: &str = "--backend neuron --target trn2 --tp 1 --max-context 128 --page-tokens 16 \
    --kv-pages 32 --context-pages 8 --decode-rows 2 --prefill-tokens 32 --candidates 8";

const MODULES: [&str; 5] = [
    "decode-2x8",
    "prefill-1x32x0",
    "prefill-1x32x8",
    "prefill-1x64x8-each",
    "copy-8",
];

/// A store of a test's own, and what is prepared in it.
struct Bench {
    model: Model,
    store: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Self {
        let families = Family::all();
        let family = families.iter().find(|family| family.name == "llama2");
        Self {
            model: family.expect("a golden family").model(false),
            store: fresh(name),
        }
    }

    fn arguments(&self, flags: &[&str]) -> Vec<String> {
        let path = |path: &Path| path.to_str().expect("paths of tests are text").to_owned();
        let mut arguments = vec!["prepare".to_owned()];
        arguments.extend(FORM.split_whitespace().map(str::to_owned));
        arguments.extend(["--model".to_owned(), path(&self.model.path)]);
        arguments.extend(["--compiler".to_owned(), path(&built("fake-neuronx-cc"))]);
        arguments.extend(["--artifacts".to_owned(), path(&self.store)]);
        arguments.extend(flags.iter().map(ToString::to_string));
        arguments
    }

    /// Runs with this in `FAKE_NEURONX_CC`.
    fn prepare(&self, mischief: &str, flags: &[&str]) -> Ended {
        let variables = [("FAKE_NEURONX_CC", mischief)];
        server::appliance_with(&variables, self.arguments(flags))
    }

    #[track_caller]
    fn succeed(&self, mischief: &str) -> Ended {
        let ended = self.prepare(mischief, &[]);
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        ended
    }

    /// Fails with all of `told`, then goes on from there.
    #[track_caller]
    fn fail(&self, mischief: &str, flags: &[&str], told: &[&str]) {
        let ended = self.prepare(mischief, flags);
        assert_eq!(ended.code, Some(1), "{mischief}: {}", ended.stderr);
        for word in told {
            assert!(ended.stderr.contains(word), "{word:?} in {}", ended.stderr);
        }
        assert!(!ended.stdout.contains("bundle: "), "{}", ended.stdout);
        self.assert_tidy();
        let ended = self.succeed("");
        let kept = ended.stderr.matches("was compiled before").count();
        assert_eq!(kept, MODULES.len() - 1, "{}", ended.stderr);
    }

    /// Compilers leave nothing lying about.
    #[track_caller]
    fn assert_tidy(&self) {
        let work = fs::read_dir(self.store.join("work")).expect("a directory for work");
        assert_eq!(work.count(), 0);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.store).ok();
    }
}

/// The file of that name beside this test binary.
fn built(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("the path of this test binary");
    let deps = this.parent().expect("a test binary lies in a directory");
    let path = deps.parent().unwrap_or(deps).join(name);
    assert!(
        path.is_file(),
        "no {}: `cargo build -p fake-nrt -p appliance`, or `make test`",
        path.display()
    );
    path
}

/// The bundle that a run says it made.
#[track_caller]
fn bundle(ended: &Ended) -> Bundle {
    let line = ended
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("bundle: "));
    let path = line.unwrap_or_else(|| panic!("no bundle: {}", ended.stdout));
    Bundle::open(Path::new(path)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_model_becomes_a_bundle() {
    let bench = Bench::new("prepare-bundle");
    let ended = bench.succeed("");
    let bundle = bundle(&ended);
    let modules = bundle.manifest().modules.iter();
    assert_eq!(
        modules
            .map(|module| module.bucket.name())
            .collect::<Vec<_>>(),
        MODULES
    );
    for module in &bundle.manifest().modules {
        let neff = fs::read(bundle.neff(module.bucket)).unwrap();
        let neff = nrt::neff::Neff::read(&neff).expect("the stand-in's runtime reads it");
        assert_eq!((neff.info.target.as_str(), neff.info.lnc), ("trn2", 2));
    }
    let serve = format!(
        "appliance serve --model {} --backend neuron --artifacts {}",
        bench.model.path.display(),
        bench.store.display()
    );
    assert!(ended.stdout.contains(&serve), "{}", ended.stdout);
    assert!(ended.stdout.contains("padding up to") && ended.stdout.contains("KV"));
    bench.assert_tidy();
    // The command that the manifest gives makes the same again, without a compiler's help.
    let words = bundle.manifest().command.split_whitespace().skip(1);
    let again = appliance(words.chain(["--compiler", built("fake-neuronx-cc").to_str().unwrap()]));
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(self::bundle(&again).directory(), bundle.directory());
    assert_eq!(
        again.stderr.matches("was compiled before").count(),
        MODULES.len()
    );
}

#[test]
fn what_is_compiled_is_not_compiled_again() {
    let bench = Bench::new("prepare-again");
    let first = bundle(&bench.succeed(""));
    let again = bundle(&bench.succeed("exit70"));
    assert_eq!(first.directory(), again.directory());
    // Another compiler is another matter.
    let other = bundle(&bench.succeed("version=2.28.1.0"));
    assert_ne!(first.directory(), other.directory());
    assert_eq!(other.manifest().compiler.version, "2.28.1.0");
}

#[test]
fn an_error_that_does_not_come_again_is_no_failure() {
    let bench = Bench::new("prepare-flaky");
    let marker = fresh("flaky-marker");
    let ended = bench.succeed(&format!("exit70@decode:once={}", marker.display()));
    assert!(
        ended
            .stderr
            .contains("decode-2x8: the compiler ended with code 70"),
        "{}",
        ended.stderr
    );
    fs::remove_file(marker).unwrap();
}

#[test]
fn memory_that_sufficed_alone_is_no_failure() {
    let bench = Bench::new("prepare-crowded");
    let marker = fresh("crowded-marker");
    let ended = bench.succeed(&format!("f137@decode:once={}", marker.display()));
    assert!(
        ended.stderr.contains("decode-2x8: it ran out of memory"),
        "{}",
        ended.stderr
    );
    fs::remove_file(marker).unwrap();
}

#[test]
fn a_compiler_that_fails_is_told_of_and_the_next_run_goes_on() {
    let check = |mischief: &str, told: &[&str]| {
        let mut told = told.to_vec();
        told.extend(["not compiled: decode-2x8", "the other 4 modules are kept"]);
        let bench = Bench::new(&format!("prepare-{mischief}"));
        bench.fail(&format!("{mischief}@decode"), &[], &told);
    };
    check(
        "exit70",
        &[
            "exit code 70",
            "NCC_INAS001",
            "--extra-args 'decode-2x8=-O1'",
        ],
    );
    check(
        "f137",
        &["ran out of memory on decode-2x8, alone", "GiB or more"],
    );
    check(
        "killed",
        &["ran out of memory on decode-2x8, alone", "GiB or more"],
    );
    check("abort", &["failed on decode-2x8 (signal 6)"]);
    check("garbage", &["no NEFF that can be loaded"]);
    check("truncated", &["cut off"]);
    check("nothing", &["wrote no NEFF", "No such file"]);
}

#[test]
fn a_compiler_that_hangs_is_killed_with_its_children() {
    let bench = Bench::new("prepare-hang");
    let told = ["was not done with decode-2x8 after 3 s", "--time-limit"];
    bench.fail("hang@decode", &["--time-limit", "3s"], &told);
    let work = bench.store.join("work");
    eventually("nobody works there any more", || !anybody_works_in(&work));
}

/// Whether a process works in `directory` or below.
fn anybody_works_in(directory: &Path) -> bool {
    let directory = directory.canonicalize().expect("a directory for work");
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let places = processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok());
    places
        .into_iter()
        .any(|place| place.starts_with(&directory))
}

#[test]
fn unknown_flags_are_the_compilers_to_refuse() {
    let bench = Bench::new("prepare-flags");
    let told = [
        "exit code 2",
        "unrecognized arguments: --no-such-flag",
        "not compiled: copy-8",
    ];
    bench.fail("", &["--extra-args", "copy=--no-such-flag"], &told);
}

#[test]
fn a_signal_stops_it_and_what_is_done_is_kept() {
    let bench = Bench::new("prepare-signal");
    let log = fresh("signal-log");
    let file = File::create(&log).unwrap();
    let binary =
        std::env::var_os("APPLIANCE_BIN").map_or_else(|| built("appliance"), PathBuf::from);
    // Decode is done at once; the others would never be.
    let mut child = Command::new(binary)
        .args(bench.arguments(&["--jobs", "2"]))
        .env("FAKE_NEURONX_CC", "hang@prefill")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(&log).unwrap_or_default();
    eventually("the first is compiled", || {
        said().contains("decode-2x8: compiled in")
    });
    let work = bench.store.join("work");
    eventually("the others are at work", || anybody_works_in(&work));
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{}", said());
    assert!(
        said().contains("the same command goes on from here"),
        "{}",
        said()
    );
    eventually("nobody works there any more", || !anybody_works_in(&work));
    bench.assert_tidy();
    fs::remove_file(&log).unwrap();
    let ended = bench.succeed("");
    assert!(
        ended.stderr.contains("decode-2x8: was compiled before"),
        "{}",
        ended.stderr
    );
}

#[test]
fn modules_can_be_looked_at_without_a_compiler() {
    let bench = Bench::new("graph");
    let model = bench.model.path.to_str().unwrap();
    let out = bench.store.to_str().unwrap();
    let graph = |flags: &[&str]| {
        let form = FORM.split_whitespace();
        appliance(
            ["graph", "--model", model]
                .into_iter()
                .chain(form)
                .chain(flags.iter().copied()),
        )
    };
    let text = graph(&["--bucket", "decode-2x8"]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    assert!(
        text.stdout.starts_with("HloModule decode-2x8"),
        "{}",
        text.stdout
    );
    let all = graph(&["--dump", out, "--format", "pb"]);
    assert_eq!(all.code, Some(0), "{}", all.stderr);
    let compiled = bundle(&bench.succeed(""));
    for module in &compiled.manifest().modules {
        let name = format!("{}.hlo.pb", module.bucket.name());
        let dumped = fs::read(bench.store.join(name)).unwrap();
        assert_eq!(dumped, fs::read(compiled.hlo(module.bucket)).unwrap());
    }
    let nonsense = graph(&["--bucket", "decode-2"]);
    assert_eq!(nonsense.code, Some(64));
    assert!(
        nonsense.stderr.contains("decode-ROWSxPAGES"),
        "{}",
        nonsense.stderr
    );
}
