//! `appliance doctor` on the stand-ins: what holds there holds, and what goes wrong is told by the step
//! that it belongs to, with the others asked all the same.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use appliance_tests::golden::Family;
use appliance_tests::neuron::fresh;
use appliance_tests::server::appliance_with;
use appliance_tests::{Ended, Fake, Model, Server, appliance, eventually};
use nrt::sysfs::{self, Sysfs};
use nrt::topology::Topology;
use serde_json::Value;

/// The machine that all of them are on.
const INSTANCE: &str = "trn2.3xlarge";

/// How a tiny model is prepared, where one is needed.
const FORM: [&str; 10] = [
    "--max-context",
    "128",
    "--context-pages",
    "8",
    "--kv-pages",
    "32",
    "--decode-rows",
    "2",
    "--prefill-tokens",
    "32",
];

/// A machine with the driver's tree and a kernel's log.
struct Machine {
    fake: Fake,
    folder: PathBuf,
    tree: Sysfs,
}

impl Machine {
    /// `None`, and a word about it, without the stand-ins.
    fn new(name: &str) -> Option<Self> {
        let fake = Fake::found()?;
        let folder = fresh(&format!("doctor-{name}"));
        let topology = Topology::new(INSTANCE, None, None).expect("it is known");
        let tree =
            sysfs::write(&folder.join("sysfs"), &topology).expect("a directory under target");
        fs::write(folder.join("kmsg"), "").expect("a file in it");
        fs::write(folder.join("faults"), "").expect("a file in it");
        let fake = fake
            .with("FAKE_NRT_INSTANCE", INSTANCE)
            .with("FAKE_NRT_FAULTS", folder.join("faults"))
            .with("APPLIANCE_NEURON_SYSFS", folder.join("sysfs"))
            .with("APPLIANCE_KMSG", folder.join("kmsg"));
        Some(Self { fake, folder, tree })
    }

    fn failing(self, faults: &str) -> Self {
        fs::write(self.folder.join("faults"), faults).expect("a file in it");
        self
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.fake = self.fake.clone().with(name, value);
        self
    }

    /// Examines it, with these flags beside those that every test has.
    fn examine(&self, flags: &[&str]) -> (Option<i32>, Report) {
        let mut arguments = vec!["doctor", "--backend", "neuron", "--json", "--soak", "1s"];
        let modules = modules().to_str().expect("text");
        arguments.extend(["--artifacts", modules, "--compiler", "no-such-compiler"]);
        arguments.extend(flags);
        let ended = run(&self.fake.environment(), &arguments);
        (ended.code, Report::of(&ended))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn run(environment: &[(&'static str, OsString)], arguments: &[&str]) -> Ended {
    let variables: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.to_str().expect("paths of tests are text")))
        .collect();
    appliance_with(&variables, arguments)
}

/// The compiled modules of all tests, made once by the verb itself, with stand-ins that do nothing
/// wrong, whichever test comes first.
fn modules() -> &'static Path {
    static MODULES: OnceLock<PathBuf> = OnceLock::new();
    MODULES.get_or_init(|| {
        let folder = fresh("doctor-modules");
        compile(&Fake::found().expect("they were found"), &folder);
        folder
    })
}

fn compile(fake: &Fake, folder: &Path) {
    let folder = folder.to_str().expect("text");
    let compiler = fake.compiler().to_str().expect("text");
    let arguments = ["doctor", "--compile-for", "trn2", "--cores", "4"];
    let paths = ["--artifacts", folder, "--compiler", compiler];
    let ended = run(&fake.environment(), &[&arguments[..], &paths].concat());
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

/// A report as it is written.
#[derive(Debug)]
struct Report(Value);

impl Report {
    #[track_caller]
    fn of(ended: &Ended) -> Self {
        let report = serde_json::from_str(&ended.stdout);
        Self(report.unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr)))
    }

    fn step(&self, number: usize) -> &Value {
        &self.0["steps"][number - 1]
    }

    fn with(&self, outcome: &str) -> Vec<u64> {
        let steps = self.0["steps"].as_array().expect("a list").iter();
        let steps = steps.filter(|step| step["outcome"] == outcome);
        steps
            .map(|step| step["number"].as_u64().expect("a number"))
            .collect()
    }

    /// Only these steps failed, and the first of them says all of `told`.
    #[track_caller]
    fn assert_failed(&self, steps: &[u64], told: &[&str]) {
        assert_eq!(self.with("failed"), steps, "{:#}", self.0);
        let first = usize::try_from(steps[0]).expect("few steps");
        let why = self.step(first)["why"].as_str().expect("a reason");
        for word in told {
            assert!(why.contains(word), "{word:?} in {why}");
        }
        assert!(self.step(first)["to_do"].is_string());
    }
}

#[test]
fn on_a_device_that_is_well_everything_holds() {
    let Some(machine) = Machine::new("well") else {
        return;
    };
    let (code, report) = machine.examine(&[]);
    assert_eq!(
        report.with("held"),
        (1..=12).collect::<Vec<_>>(),
        "{:#}",
        report.0
    );
    assert_eq!((code, &report.0["held"]), (Some(0), &Value::from(12)));
    let seen = |step: usize| &report.step(step)["seen"];
    assert_eq!(seen(1)["target"], "trn2");
    assert_eq!(seen(1)["chips"][0]["name"], "Trainium2");
    assert_eq!(seen(2)["add"]["tensors"][0]["bytes"], 128 * 512 * 4);
    assert_eq!(seen(6)["equals_by_lowest_column"], true);
    assert!(seen(7)["two groups in one process"]["sums"].is_u64());
    assert!(
        seen(10)["full_memory"]
            .as_str()
            .expect("text")
            .contains("NRT_RESOURCE")
    );
    assert!(seen(11)["rounds"].as_u64().expect("a number") > 0);
    assert!(seen(12)["processors_of_ranks"].is_array());
}

#[test]
fn a_hung_execution_fails_its_step_and_keeps_nobody() {
    let Some(machine) = Machine::new("hung") else {
        return;
    };
    let machine = machine.failing("execute hang model=doctor-pages\n");
    let (code, report) = machine.examine(&["--patience", "20s"]);
    assert_eq!(code, Some(1));
    report.assert_failed(&[5], &["no answer in 20s", "threads", "futex"]);
}

#[test]
fn a_process_that_dies_is_told_of_with_its_last_words() {
    let Some(machine) = Machine::new("dead") else {
        return;
    };
    let (_, report) = machine
        .failing("execute die model=doctor-fp8\n")
        .examine(&[]);
    report.assert_failed(&[8], &["died", "signal"]);
}

#[test]
fn a_number_that_is_none_fails_the_step_that_computed_it() {
    let Some(machine) = Machine::new("nan") else {
        return;
    };
    let machine = machine.failing("execute nan model=doctor-in-place\n");
    let (_, report) = machine.examine(&[]);
    report.assert_failed(&[4, 11], &["NRT_EXEC_COMPLETED_WITH_NUM_ERR (1003)"]);
}

#[test]
fn ranks_that_cannot_sum_are_told_apart_by_their_number() {
    let Some(machine) = Machine::new("ranks") else {
        return;
    };
    let machine = machine.failing("execute status=1200 model=doctor-sum-4 from=2\n");
    let (_, report) = machine.examine(&[]);
    report.assert_failed(&[7, 11], &["all ranks: rank 0", "(1200)"]);
    assert!(!report.step(7)["why"].to_string().contains("two ranks"));
}

#[test]
fn hardware_that_the_kernel_gave_up_is_not_examined_further() {
    let Some(machine) = Machine::new("kernel") else {
        return;
    };
    let line = sysfs::kernel_line("SRAM_UNCORRECTABLE_ERROR", 0, 1, "TERMINATE_INSTANCE");
    fs::write(machine.folder.join("kmsg"), format!("3,1,2,-;{line}\n")).expect("a file");
    let (code, report) = machine.examine(&[]);
    assert_eq!(code, Some(1));
    report.assert_failed(&[1], &["SRAM_UNCORRECTABLE_ERROR", "terminate"]);
    assert_eq!(report.with("skipped").len(), 11);
}

#[test]
fn without_a_device_the_first_step_says_so() {
    let ended = appliance(["doctor", "--backend", "neuron", "--json"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let report = Report::of(&ended);
    report.assert_failed(&[1], &["neuron0"]);
    assert_eq!(report.with("skipped").len(), 11);
    assert!(report.0["device"].is_null());
}

#[test]
fn without_a_compiler_it_is_said_how_to_go_on() {
    let Some(machine) = Machine::new("no-compiler") else {
        return;
    };
    let empty = fresh("doctor-empty");
    let flags = ["--artifacts", empty.to_str().expect("text"), "--cores", "1"];
    let (code, report) = machine.examine(&flags);
    assert_eq!(code, Some(0), "{:#}", report.0);
    assert_eq!(report.with("held"), [1, 9, 12]);
    let why = report.step(2)["why"].as_str().expect("a reason");
    assert!(why.contains("--compile-for trn2 --cores 1"), "{why}");
    assert!(
        report.step(7)["why"]
            .to_string()
            .contains("one logical core")
    );
    fs::remove_dir_all(empty).ok();
}

#[test]
fn a_module_that_the_compiler_refuses_is_an_answer() {
    let Some(machine) = Machine::new("refused") else {
        return;
    };
    let machine = machine.with("FAKE_NEURONX_CC", "exit70@doctor-fp8");
    let empty = fresh("doctor-refused-modules");
    let compiler = machine.fake.compiler().to_owned();
    let flags = [
        "--artifacts",
        empty.to_str().expect("text"),
        "--compiler",
        compiler.to_str().expect("text"),
    ];
    let (_, report) = machine.examine(&flags);
    report.assert_failed(&[8], &["the compiler failed on fp8"]);
    fs::remove_dir_all(empty).ok();
}

#[test]
fn the_memory_of_a_bundle_is_measured() {
    let Some(machine) = Machine::new("bundle") else {
        return;
    };
    let families = Family::all();
    let family = families.iter().find(|family| family.name == "llama2");
    let model = family.expect("a golden family").model(false);
    let store = machine.fake.prepared(&model, 2, &FORM);
    compile(&machine.fake, &store);
    let (_, report) = machine.examine(&["--artifacts", store.to_str().expect("text")]);
    let step = report.step(9);
    assert_eq!(step["outcome"], "held", "{step:#}");
    let seen = step["seen"].as_object().expect("values");
    let (_, measured) = (seen.iter())
        .find(|(name, _)| name.starts_with("bundle "))
        .expect("a bundle");
    let bytes = |name: &str| measured[name].as_u64().expect("a number");
    assert!(bytes("tensors") >= bytes("tensors_expected"), "{measured}");
    assert!(bytes("loading") > 0, "{measured}");
}

#[test]
fn a_processor_is_examined_too() {
    let ended = appliance(["doctor", "--backend", "cpu"]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains("kernels: \"AVX2\""),
        "{}",
        ended.stdout
    );
}

#[test]
fn what_the_driver_and_the_kernel_count_is_on_metrics() {
    let Some(machine) = Machine::new("metrics") else {
        return;
    };
    let model = Model::chain();
    let bundles = machine.fake.prepared(&model, 1, &FORM);
    machine
        .tree
        .set_hardware(0, "mem_ecc_uncorrected", 2)
        .expect("it is there");
    let flags = [
        "--backend",
        "neuron",
        "--artifacts",
        bundles.to_str().expect("text"),
    ];
    let server = Server::start_with(&machine.fake.environment(), &model, &flags);
    let metrics = server.metrics();
    let uncorrected = [("device", "0"), ("kind", "mem_ecc_uncorrected")];
    let name = "appliance_device_hardware_errors_total";
    assert_eq!(metrics.labelled(name, &uncorrected), 2.0);
    assert_eq!(metrics.kind(name), Some("counter"));
    assert_eq!(metrics.value("appliance_device_chips"), 1.0);
    let line = sysfs::kernel_line("DMA_ERROR", 0, 0, "TERMINATE_INSTANCE");
    fs::write(machine.folder.join("kmsg"), format!("{line}\n")).expect("a file");
    eventually("the kernel's word is counted", || {
        let metrics = server.metrics();
        let mut told = metrics.all("appliance_device_kernel_errors_total");
        told.any(|series| series.labels["advice"] == "replace-instance" && series.value == 1.0)
    });
}
