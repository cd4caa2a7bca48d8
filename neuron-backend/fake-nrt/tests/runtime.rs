//! The runtime without C: what it takes, what it refuses, what it computes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Barrier};

use nrt::compiled::{Compiled, Maker, Source};
use nrt::handles::Handle;
use nrt::neff::{Info, Neff, Reservation};
use nrt::settings::Settings;
use nrt::status::{Failure, Status};
use nrt::{Process, Runtime, Target, sample};
use tempfile::TempDir;

/// A runtime with a directory of its own.
struct Fixture {
    directory: TempDir,
    process: Process,
    runtime: Arc<Runtime>,
}

/// Settings of tests: nothing is computed unless `real`.
fn settings(directory: &Path, variables: &[(&str, &str)]) -> Settings {
    let mut all = BTreeMap::from([
        ("FAKE_NRT_DIR", directory.to_str().unwrap()),
        ("FAKE_NRT_EXECUTE", "skip"),
        ("FAKE_NRT_OVERHEAD_BYTES", "0"),
        ("NEURON_RT_ROOT_COMM_ID", "127.0.0.1:61239"),
    ]);
    all.extend(variables.iter().copied());
    let own = all
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    Settings::read(own).unwrap()
}

fn fixture(variables: &[(&str, &str)]) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::new();
    let runtime = process.init(settings(directory.path(), variables)).unwrap();
    Fixture {
        directory,
        process,
        runtime,
    }
}

/// A runtime that computes, if there is XLA's plugin to compute with.
fn real(variables: &[(&str, &str)]) -> Option<Fixture> {
    let Ok(plugin) = std::env::var("APPLIANCE_XLA_CPU") else {
        eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
        return None;
    };
    let mut all = vec![("FAKE_NRT_EXECUTE", "run"), ("APPLIANCE_XLA_CPU", &plugin)];
    all.extend_from_slice(variables);
    Some(fixture(&all))
}

fn neff(name: &str, ranks: u32) -> Vec<u8> {
    Neff::write(
        &sample::counter(name, ranks),
        &sample::info("trn2", 2, ranks),
    )
    .unwrap()
}

fn on(core: i32) -> Target {
    Target {
        core,
        count: -1,
        rank: None,
    }
}

fn as_rank(core: i32, rank: u32, ranks: u32) -> Target {
    Target {
        rank: Some((rank, ranks)),
        ..on(core)
    }
}

fn bytes(numbers: [f32; 4]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// A counter with its tensors and sets, on one core.
struct Bound {
    runtime: Arc<Runtime>,
    model: Handle,
    x: Handle,
    state: Handle,
    sum: Handle,
    inputs: Handle,
    outputs: Handle,
}

impl Bound {
    fn new(runtime: &Arc<Runtime>, neff: &[u8], target: Target) -> Self {
        let model = runtime.load(neff, target).unwrap();
        let core = runtime.model_core(model).unwrap();
        let tensor = |name| runtime.allocate(Some(core), 16, name).unwrap();
        let bound = Self {
            runtime: Arc::clone(runtime),
            model,
            x: tensor("x"),
            state: tensor("state"),
            sum: tensor("sum"),
            inputs: runtime.allocate_set(),
            outputs: runtime.allocate_set(),
        };
        bound.add(bound.inputs, "x", bound.x);
        bound.add(bound.inputs, "state.must_alias_input", bound.state);
        bound.add(bound.outputs, "sum", bound.sum);
        bound.add(bound.outputs, "state", bound.state);
        runtime.fill(bound.state, 0, 0, 16).unwrap();
        bound
    }

    fn add(&self, set: Handle, name: &str, tensor: Handle) {
        self.runtime.add_to_set(set, name, tensor).unwrap();
    }

    fn write(&self, numbers: [f32; 4]) {
        self.runtime.write(self.x, 0, &bytes(numbers)).unwrap();
    }

    fn execute(&self) -> Result<(), Failure> {
        self.runtime.execute(self.model, self.inputs, self.outputs)
    }

    fn read(&self, tensor: Handle) -> [f32; 4] {
        let mut bytes = [0; 16];
        self.runtime.read(tensor, 0, &mut bytes).unwrap();
        let mut numbers = bytes
            .as_chunks()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four));
        std::array::from_fn(|_| numbers.next().unwrap())
    }

    fn free(self) {
        self.runtime.destroy_set(self.inputs).unwrap();
        self.runtime.destroy_set(self.outputs).unwrap();
        for tensor in [self.x, self.state, self.sum] {
            self.runtime.free(tensor).unwrap();
        }
        self.runtime.unload(self.model).unwrap();
    }
}

#[track_caller]
fn assert_status<T: std::fmt::Debug>(result: Result<T, Failure>, status: Status) {
    match result.unwrap_err() {
        Failure::Status(found, _) if found == status => {}
        other => panic!("{other}, not {status}"),
    }
}

#[track_caller]
fn assert_misuse<T: std::fmt::Debug>(result: Result<T, Failure>, words: &str) {
    match result.unwrap_err() {
        Failure::Misuse(text) if text.contains(words) => {}
        other => panic!("{other}, not misuse about {words:?}"),
    }
}

#[test]
fn the_runtime_lives_once() {
    let Fixture {
        directory,
        process,
        runtime,
    } = fixture(&[]);
    let again = settings(directory.path(), &[]);
    assert_status(process.init(again.clone()), Status::INVALID);
    process.close(&[]).unwrap();
    assert_status(process.runtime(), Status::CLOSED);
    assert!(process.runtime_or_nothing().unwrap().is_none());
    assert_status(process.init(again), Status::CLOSED);
    assert_status(Process::new().runtime(), Status::UNINITIALIZED);
    drop(runtime);
    let reinit = settings(directory.path(), &[("FAKE_NRT_REINIT", "1")]);
    process.init(reinit).unwrap();
}

#[test]
fn cores_stay_taken_after_close() {
    let held = fixture(&[("NEURON_RT_VISIBLE_CORES", "1-2")]);
    held.process.close(&[]).unwrap();
    let other = settings(held.directory.path(), &[("NEURON_RT_VISIBLE_CORES", "2")]);
    assert_status(Process::new().init(other), Status::FAILURE);
}

#[test]
fn what_is_left_at_close_is_told() {
    let leaks = fixture(&[("FAKE_NRT_LEAKS", "abort")]);
    let tensor = leaks.runtime.allocate(Some(0), 8, "keys.7").unwrap();
    assert_misuse(leaks.process.close(&[]), "keys.7");
    let clean = fixture(&[("FAKE_NRT_LEAKS", "abort")]);
    Bound::new(&clean.runtime, &neff("counter", 1), on(0)).free();
    clean.process.close(&[]).unwrap();
    assert_ne!(tensor, Handle(0));
}

#[test]
fn handles_go_on_after_the_runtime_is_opened_again() {
    let first = fixture(&[]);
    let tensor = first.runtime.allocate(Some(0), 8, "a").unwrap();
    first.process.close(&[]).unwrap();
    let again = settings(first.directory.path(), &[("FAKE_NRT_REINIT", "1")]);
    let runtime = first.process.init(again).unwrap();
    assert_misuse(runtime.size(tensor), "after it was freed");
}

#[test]
fn neffs_for_other_devices_are_refused() {
    let Fixture { runtime, .. } = &fixture(&[("NEURON_RT_VISIBLE_CORES", "0-1")]);
    let load = |info: Info, target| {
        let neff = Neff::write(&sample::counter("c", info.ranks), &info).unwrap();
        runtime.load(&neff, target)
    };
    assert_status(
        load(sample::info("trn1", 2, 1), on(0)),
        Status::UNSUPPORTED_NEFF_VERSION,
    );
    assert_status(load(sample::info("trn2", 1, 1), on(0)), Status::INVALID);
    assert_status(
        load(sample::info("trn2", 2, 8), as_rank(0, 0, 8)),
        Status::LOAD_NOT_ENOUGH_NC,
    );
    assert_status(
        load(sample::info("trn2", 2, 1), on(2)),
        Status::LOAD_NOT_ENOUGH_NC,
    );
    assert_status(load(sample::info("trn2", 2, 1), on(-2)), Status::INVALID);
    assert_status(load(sample::info("trn2", 2, 2), on(0)), Status::INVALID);
    assert_status(
        load(sample::info("trn2", 2, 2), as_rank(0, 2, 2)),
        Status::INVALID,
    );
    let count = Target { count: 2, ..on(0) };
    assert_status(load(sample::info("trn2", 2, 1), count), Status::INVALID);
    assert_status(runtime.load(b"no neff", on(0)), Status::INVALID);
    let any = |_| {
        let model = load(sample::info("trn2", 2, 1), on(-1)).unwrap();
        runtime.model_core(model).unwrap()
    };
    assert_eq!([0, 1].map(any), [0, 1]);
}

#[test]
fn collectives_need_an_address_to_meet_at() {
    let Fixture { runtime, .. } = &fixture(&[("NEURON_RT_ROOT_COMM_ID", "")]);
    assert_status(
        runtime.load(&neff("c", 2), as_rank(0, 0, 2)),
        Status::INVALID,
    );
    assert_status(runtime.check_communicator(0, 0, 2), Status::INVALID);
    runtime.check_communicator(0, 0, 1).unwrap();
    let without_port = fixture(&[("NEURON_RT_ROOT_COMM_ID", "127.0.0.1")]);
    assert_status(
        without_port.runtime.check_communicator(0, 0, 2),
        Status::INVALID,
    );
}

#[test]
fn names_have_four_forms() {
    let names = |form| {
        let Fixture { runtime, .. } = &fixture(&[("FAKE_NRT_NAMES", form)]);
        let model = runtime.load(&neff("c", 1), on(0)).unwrap();
        let infos = runtime.tensor_info(model).unwrap();
        let names: Vec<_> = infos.into_iter().map(|info| info.name).collect();
        names.join(" ")
    };
    assert_eq!(names("attributes"), "x state.must_alias_input sum state");
    assert_eq!(names("must_alias"), "x state.must_alias_input sum state");
    assert_eq!(names("plain"), "x state sum state");
    assert_eq!(names("indexed"), "input0 input1 output0 output1");
}

#[test]
fn memory_is_taken_and_given_back() {
    let Fixture {
        runtime, directory, ..
    } = &fixture(&[("FAKE_NRT_HBM_BYTES", "200000000")]);
    let used = |core| runtime.memory_stats(core).unwrap().0;
    let mut info = sample::info("trn2", 2, 1);
    info.reservation = Reservation {
        code: 1000,
        rings: 2000,
        scratchpad: 70 << 20,
    };
    let neff = Neff::write(&sample::counter("c", 1), &info).unwrap();
    let bound = Bound::new(runtime, &neff, on(1));
    let resting = 3000 + (128 << 20) + 3 * 4096;
    assert_eq!((used(0), used(1)), (0, resting));
    bound.execute().unwrap();
    let second = runtime.load(&neff, on(1)).unwrap();
    assert_eq!(used(1), resting + 3000);
    assert_status(
        runtime.allocate(Some(1), 100_000_000, "big"),
        Status::RESOURCE,
    );
    let table = directory.path().join("neuron_mem_table_device_0_hbm_1.log");
    assert!(std::fs::read_to_string(table).unwrap().contains("big"));
    runtime.unload(second).unwrap();
    bound.free();
    assert_eq!(used(1), 0);
    assert_status(runtime.memory_stats(4), Status::INVALID);
    assert_status(runtime.allocate(Some(4), 8, "nowhere"), Status::INVALID);
    assert_status(runtime.allocate(Some(0), 0, "nothing"), Status::INVALID);
}

#[test]
fn a_slice_keeps_the_memory_of_its_tensor() {
    let Fixture { runtime, .. } = &fixture(&[]);
    let whole = runtime.allocate(Some(0), 8192, "whole").unwrap();
    runtime.write(whole, 4096, &[7; 4096]).unwrap();
    let part = runtime.slice(whole, 4096, 4096, "part").unwrap();
    let inner = runtime.slice(part, 10, 6, "inner").unwrap();
    runtime.write(inner, 5, &[9]).unwrap();
    runtime.free(whole).unwrap();
    runtime.free(part).unwrap();
    assert_eq!(runtime.memory_stats(0).unwrap().0, 8192);
    let mut read = [0; 6];
    runtime.read(inner, 0, &mut read).unwrap();
    assert_eq!(read, [7, 7, 7, 7, 7, 9]);
    assert_misuse(runtime.read(whole, 0, &mut read), "after it was freed");
    assert_status(runtime.read(inner, 1, &mut read), Status::INVALID);
    assert_status(runtime.slice(inner, 1, 6, "beyond"), Status::INVALID);
    runtime.free(inner).unwrap();
    assert_eq!(runtime.memory_stats(0).unwrap().0, 0);
}

#[test]
fn unwritten_memory_is_no_number() {
    let Fixture { runtime, .. } = &fixture(&[]);
    let tensor = runtime.allocate(Some(0), 16, "new").unwrap();
    let mut read = [0; 4];
    runtime.read(tensor, 0, &mut read).unwrap();
    assert!(f32::from_le_bytes(read).is_nan());
    runtime.fill(tensor, 4, 0, 4).unwrap();
    runtime.read(tensor, 4, &mut read).unwrap();
    assert_eq!(read, [0; 4]);
}

#[test]
fn copies_stay_on_a_core_or_go_through_the_host() {
    let Fixture { runtime, .. } = &fixture(&[]);
    let tensor = |core| runtime.allocate(core, 8, "t").unwrap();
    let (here, same, there, host) = (
        tensor(Some(0)),
        tensor(Some(0)),
        tensor(Some(1)),
        tensor(None),
    );
    runtime.write(here, 0, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    runtime.copy((here, 4), (same, 0), 4).unwrap();
    runtime.copy((same, 0), (host, 2), 4).unwrap();
    let mut read = [0; 4];
    runtime.read(host, 2, &mut read).unwrap();
    assert_eq!(read, [5, 6, 7, 8]);
    assert_status(runtime.copy((here, 0), (there, 0), 4), Status::INVALID);
    assert_status(runtime.copy((here, 6), (same, 0), 4), Status::INVALID);
    assert_eq!(runtime.memory_stats(0).unwrap().0, 8192);
    assert!(runtime.allocation(host).is_err());
    assert_eq!(runtime.allocation(there).unwrap().bank, 1);
}

#[test]
fn every_name_must_be_bound_to_what_fits() {
    let Fixture { runtime, .. } = &fixture(&[]);
    let bound = Bound::new(runtime, &neff("c", 1), on(0));
    bound.execute().unwrap();
    let tensor = |core, size| runtime.allocate(core, size, "other").unwrap();
    let refused = |set, name, tensor, before| {
        bound.add(set, name, tensor);
        let refused = bound.execute();
        bound.add(set, name, before);
        bound.execute().unwrap();
        refused
    };
    let bad = Status::EXEC_BAD_INPUT;
    assert_status(
        refused(bound.inputs, "x", tensor(Some(0), 12), bound.x),
        bad,
    );
    assert_status(
        refused(bound.inputs, "x", tensor(Some(1), 16), bound.x),
        Status::INVALID,
    );
    assert_status(
        refused(bound.inputs, "x", tensor(None, 16), bound.x),
        Status::INVALID,
    );
    let other = tensor(Some(0), 16);
    assert_status(refused(bound.outputs, "state", other, bound.state), bad);
    assert_status(refused(bound.outputs, "sum", bound.x, bound.sum), bad);
    assert_status(refused(bound.outputs, "sum", bound.state, bound.sum), bad);
    let empty = runtime.allocate_set();
    assert_status(runtime.execute(bound.model, empty, bound.outputs), bad);
    assert_status(runtime.execute(bound.model, bound.inputs, empty), bad);
    bound.add(bound.inputs, "left over", other);
    assert_status(bound.execute(), bad);
}

#[test]
fn tensors_in_sets_are_not_freed() {
    let Fixture { runtime, .. } = &fixture(&[]);
    let bound = Bound::new(runtime, &neff("c", 1), on(0));
    assert_misuse(runtime.free(bound.x), "still in a tensor set");
    let other = runtime.allocate(Some(0), 16, "other").unwrap();
    bound.add(bound.inputs, "x", other);
    runtime.free(bound.x).unwrap();
    assert_eq!(runtime.get_from_set(bound.inputs, "x").unwrap(), other);
    assert_status(runtime.get_from_set(bound.inputs, "y"), Status::FAILURE);
    assert_misuse(
        runtime.add_to_set(bound.inputs, "x", bound.x),
        "after it was freed",
    );
    runtime.destroy_set(bound.inputs).unwrap();
    assert_misuse(bound.execute(), "tensor set after it was freed");
    assert_status(
        runtime.execute(bound.x, bound.inputs, bound.outputs),
        Status::INVALID_HANDLE,
    );
    runtime.free(other).unwrap();
}

/// Does `work` while an execution of rank 0 is under way: it waits for rank 1, which comes last.
fn while_it_runs(variables: &[(&str, &str)], work: impl FnOnce(&Bound)) {
    let Fixture { runtime, .. } = &fixture(variables);
    let bind = |rank: u32| {
        let core = i32::try_from(rank).unwrap();
        Bound::new(runtime, &neff("c", 2), as_rank(core, rank, 2))
    };
    let (bound, late) = std::thread::scope(|scope| {
        let late = scope.spawn(|| bind(1));
        (bind(0), late.join().unwrap())
    });
    std::thread::scope(|scope| {
        let running = scope.spawn(|| bound.execute());
        // Once it has begun, its sets may not change.
        while runtime.add_to_set(bound.inputs, "x", bound.x).is_ok() {
            std::thread::yield_now();
        }
        work(&bound);
        late.execute().unwrap();
        running.join().unwrap().unwrap();
    });
    assert_eq!(bound.read(bound.sum), [0.0; 4]);
}

#[test]
fn whoever_races_with_an_execution_is_told() {
    while_it_runs(&[], |bound| {
        let runtime = &bound.runtime;
        assert_misuse(runtime.write(bound.x, 0, &[1]), "while an execution");
        assert_misuse(runtime.fill(bound.sum, 0, 0, 1), "while an execution");
        assert_misuse(runtime.read(bound.sum, 0, &mut [0]), "while an execution");
        runtime.read(bound.x, 0, &mut [0]).unwrap();
        assert_misuse(bound.execute(), "one execution at a time");
        assert_misuse(
            runtime.add_to_set(bound.inputs, "x", bound.x),
            "while an execution",
        );
        assert_misuse(runtime.destroy_set(bound.outputs), "while an execution");
        assert_misuse(runtime.unload(bound.model), "while it is executed");
    });
}

#[test]
fn races_may_be_allowed_and_then_the_execution_wins() {
    while_it_runs(&[("FAKE_NRT_ALLOW_RACES", "1")], |bound| {
        bound.write([5.0; 4]);
        bound.runtime.write(bound.sum, 0, &bytes([5.0; 4])).unwrap();
        assert_eq!(bound.read(bound.sum), [5.0; 4]);
    });
}

#[test]
fn the_faults_may_let_single_writes_race() {
    let faults = tempfile::NamedTempFile::new().unwrap();
    let path = faults.path().to_str().unwrap();
    std::fs::write(path, "write unordered tensor=x").unwrap();
    while_it_runs(&[("FAKE_NRT_FAULTS", path)], |bound| {
        bound.write([5.0; 4]);
        let sum = bound.runtime.write(bound.sum, 0, &[1]);
        assert_misuse(sum, "while an execution");
    });
}

#[test]
fn faults_strike_executions_and_the_device_stays_usable() {
    let faults = tempfile::NamedTempFile::new().unwrap();
    let path = faults.path().to_str().unwrap();
    let journal = tempfile::NamedTempFile::new().unwrap();
    let variables = [
        ("FAKE_NRT_FAULTS", path),
        ("FAKE_NRT_JOURNAL", journal.path().to_str().unwrap()),
    ];
    let Fixture { runtime, .. } = &fixture(&variables);
    let bound = Bound::new(runtime, &neff("c", 1), on(0));
    for status in Status::all().skip(1) {
        std::fs::write(path, format!("execute status={} at=1", status.0)).unwrap();
        assert_status(bound.execute(), status);
        bound.execute().unwrap();
    }
    let calls = nrt::journal::read(journal.path()).unwrap();
    let executions: Vec<_> = calls.iter().filter(|call| call.call == "execute").collect();
    assert_eq!(executions.len(), 2 * (Status::all().count() - 1));
    assert_eq!((executions[0].status, executions[1].status), (1, 0));
    assert_eq!(executions[0].model.as_deref(), Some("c"));
}

#[test]
fn faults_strike_other_calls() {
    let faults = tempfile::NamedTempFile::new().unwrap();
    let path = faults.path().to_str().unwrap();
    let Fixture { runtime, .. } = &fixture(&[("FAKE_NRT_FAULTS", path)]);
    let bound = Bound::new(runtime, &neff("c", 1), on(0));
    let say = |line: &str| std::fs::write(path, line).unwrap();
    say("load status=RESOURCE at=1");
    assert_status(runtime.load(&neff("c", 1), on(0)), Status::RESOURCE);
    say("tensor_allocate status=4 tensor=keys");
    assert_status(runtime.allocate(Some(0), 8, "keys.3"), Status::RESOURCE);
    runtime.allocate(Some(0), 8, "values.3").unwrap();
    say("write status=1 core=0");
    assert_status(runtime.write(bound.x, 0, &[0]), Status::FAILURE);
    say("read status=1\nmemory_stats status=2");
    assert_status(runtime.read(bound.x, 0, &mut [0]), Status::FAILURE);
    assert_status(runtime.memory_stats(0), Status::INVALID);
    say("execute without sense");
    assert_misuse(bound.execute(), "line 1");
}

#[test]
fn results_that_are_no_numbers_fail_only_if_asked() {
    let faults = tempfile::NamedTempFile::new().unwrap();
    let path = faults.path().to_str().unwrap();
    std::fs::write(path, "nan at=1").unwrap();
    let quiet = fixture(&[("FAKE_NRT_FAULTS", path)]);
    let bound = Bound::new(&quiet.runtime, &neff("c", 1), on(0));
    bound.execute().unwrap();
    assert!(bound.read(bound.sum).iter().all(|number| number.is_nan()));
    assert_eq!(bound.read(bound.state), [0.0; 4]);
    let loud = fixture(&[("FAKE_NRT_FAULTS", path), ("NEURON_FAIL_ON_NAN", "1")]);
    let bound = Bound::new(&loud.runtime, &neff("c", 1), on(0));
    assert_status(bound.execute(), Status::EXEC_COMPLETED_WITH_NUM_ERR);
    bound.execute().unwrap();
}

#[test]
fn large_tensors_are_undefined_on_old_runtimes() {
    let old = fixture(&[("FAKE_NRT_VERSION", "2.30.8")]);
    assert_misuse(
        old.runtime.allocate(Some(0), 1 << 32, "huge"),
        "before runtime 2.31",
    );
    let new = fixture(&[]);
    new.runtime.allocate(Some(0), 1 << 32, "huge").unwrap();
}

// ---- Ranks ----

#[test]
fn ranks_wait_for_each_other() {
    let Fixture { runtime, .. } = &fixture(&[]);
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let rank = |rank: u32| {
            let start = &start;
            scope.spawn(move || {
                let core = i32::try_from(rank).unwrap();
                let bound = Bound::new(runtime, &neff("c", 2), as_rank(core, rank, 2));
                for _ in 0..50 {
                    bound.execute().unwrap();
                }
                start.wait();
                bound.free();
            })
        };
        let ranks = [rank(0), rank(1)];
        for rank in ranks {
            rank.join().unwrap();
        }
    });
    assert_eq!(runtime.memory_stats(0).unwrap().0, 80 << 20);
}

#[test]
fn whoever_waits_for_ranks_in_vain_times_out() {
    let Fixture { runtime, .. } = &fixture(&[("FAKE_NRT_TIMEOUT", "1")]);
    assert_status(
        runtime.load(&neff("c", 2), as_rank(0, 0, 2)),
        Status::TIMEOUT,
    );
    let pair = |second: &[u8]| {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| runtime.load(second, as_rank(1, 1, 2)));
            let one = runtime.load(&neff("c", 2), as_rank(0, 0, 2));
            [one, other.join().unwrap()]
        })
    };
    for loaded in pair(&neff("another", 2)) {
        assert_status(loaded, Status::TIMEOUT);
    }
    for loaded in pair(&neff("c", 2)) {
        loaded.unwrap();
    }
    let twice = std::thread::scope(|scope| {
        let load = || runtime.load(&neff("c", 2), as_rank(0, 0, 2));
        let other = scope.spawn(load);
        [load(), other.join().unwrap()]
    });
    let twice = twice.map(|loaded| loaded.unwrap_err().status());
    assert!(
        twice.contains(&Status::INVALID) && twice.contains(&Status::TIMEOUT),
        "{twice:?}"
    );
}

/// Two ranks that are bound, and what `run` gives on the thread of each.
fn pair(
    runtime: &Arc<Runtime>,
    run: impl Fn(u32, &Bound) -> Vec<Result<(), Failure>> + Sync,
) -> [Vec<Result<(), Failure>>; 2] {
    std::thread::scope(|scope| {
        let [one, two] = [0, 1].map(|rank| {
            let run = &run;
            scope.spawn(move || {
                let core = i32::try_from(rank).unwrap();
                run(
                    rank,
                    &Bound::new(runtime, &neff("c", 2), as_rank(core, rank, 2)),
                )
            })
        });
        [one.join().unwrap(), two.join().unwrap()]
    })
}

#[test]
fn a_fault_of_one_rank_leaves_the_other_waiting() {
    let faults = tempfile::NamedTempFile::new().unwrap();
    let path = faults.path().to_str().unwrap();
    std::fs::write(path, "execute status=1200 rank=1 at=2").unwrap();
    let Fixture { runtime, .. } = &fixture(&[("FAKE_NRT_FAULTS", path), ("FAKE_NRT_TIMEOUT", "1")]);
    let [one, two] = pair(runtime, |_, bound| vec![bound.execute(), bound.execute()]);
    assert_eq!((&one[0], &two[0]), (&Ok(()), &Ok(())));
    assert_status(one[1].clone(), Status::TIMEOUT);
    assert_status(two[1].clone(), Status::EXEC_HW_ERR_COLLECTIVES);
}

#[test]
fn a_fault_without_a_rank_strikes_all_at_once() {
    let faults = tempfile::NamedTempFile::new().unwrap();
    let path = faults.path().to_str().unwrap();
    std::fs::write(path, "execute status=1206 at=2").unwrap();
    let Fixture { runtime, .. } = &fixture(&[("FAKE_NRT_FAULTS", path)]);
    let results = pair(runtime, |_, bound| {
        (0..3).map(|_| bound.execute()).collect()
    });
    for results in results {
        let statuses = results
            .iter()
            .map(|result| result.as_ref().err().map(Failure::status));
        let statuses: Vec<_> = statuses.collect();
        assert_eq!(statuses, [None, Some(Status::NETWORK_PROXY_FAILURE), None]);
    }
}

// ---- What is computed ----

#[test]
fn a_model_computes_and_keeps_its_state() {
    let Some(Fixture { runtime, .. }) = &real(&[]) else {
        return;
    };
    let bound = Bound::new(runtime, &neff("c", 1), on(2));
    bound.write([1.0, 2.0, 3.0, 4.0]);
    bound.execute().unwrap();
    assert_eq!(bound.read(bound.sum), [1.0, 2.0, 3.0, 4.0]);
    bound.write([1.0; 4]);
    bound.execute().unwrap();
    assert_eq!(bound.read(bound.sum), [2.0, 3.0, 4.0, 5.0]);
    assert_eq!(bound.read(bound.state), [2.0, 3.0, 4.0, 5.0]);
    runtime
        .write(bound.state, 4, &0.0_f32.to_le_bytes())
        .unwrap();
    bound.execute().unwrap();
    assert_eq!(bound.read(bound.state), [3.0, 1.0, 5.0, 6.0]);
    bound.free();
}

#[test]
fn parts_of_tensors_are_computed_with() {
    let Some(Fixture { runtime, .. }) = &real(&[]) else {
        return;
    };
    let bound = Bound::new(runtime, &neff("c", 1), on(0));
    let whole = runtime.allocate(Some(0), 48, "whole").unwrap();
    runtime.write(whole, 0, &bytes([1.0; 4]).repeat(3)).unwrap();
    let state = runtime.slice(whole, 16, 16, "middle").unwrap();
    let sum = runtime.slice(whole, 32, 16, "last").unwrap();
    bound.add(bound.inputs, "state.must_alias_input", state);
    bound.add(bound.outputs, "state", state);
    bound.add(bound.outputs, "sum", sum);
    bound.write([2.0; 4]);
    bound.execute().unwrap();
    bound.execute().unwrap();
    let mut read = [0; 48];
    runtime.read(whole, 0, &mut read).unwrap();
    let expected = [[1.0; 4], [5.0; 4], [5.0; 4]].map(bytes).concat();
    assert_eq!(read[..], expected);
}

#[test]
fn a_module_without_its_state_gives_no_number() {
    let Some(Fixture { runtime, .. }) = &real(&[("NEURON_FAIL_ON_NAN", "1")]) else {
        return;
    };
    let bound = Bound::new(runtime, &neff("c", 1), on(0));
    let unwritten = runtime.allocate(Some(0), 16, "unwritten").unwrap();
    bound.add(bound.inputs, "x", unwritten);
    assert_status(bound.execute(), Status::EXEC_COMPLETED_WITH_NUM_ERR);
}

#[test]
fn a_failed_execution_keeps_the_caches_and_spoils_the_results() {
    let faults = tempfile::NamedTempFile::new().unwrap();
    let path = faults.path().to_str().unwrap();
    let Some(Fixture { runtime, .. }) = &real(&[("FAKE_NRT_FAULTS", path)]) else {
        return;
    };
    let bound = Bound::new(runtime, &neff("c", 1), on(0));
    bound.write([1.0; 4]);
    bound.execute().unwrap();
    std::fs::write(path, "execute status=1005 at=1\nexecute status=1006 at=2").unwrap();
    assert_status(bound.execute(), Status::EXEC_NC_BUSY);
    assert_eq!(bound.read(bound.sum), [1.0; 4]);
    assert_status(bound.execute(), Status::EXEC_OOB);
    assert!(bound.read(bound.sum).iter().all(|number| number.is_nan()));
    assert_eq!(bound.read(bound.state), [1.0; 4]);
    bound.execute().unwrap();
    assert_eq!(bound.read(bound.sum), [2.0; 4]);
}

/// The counter's NEFF with a program that multiplies instead: which of the two was run shows.
#[test]
fn a_program_in_the_neff_is_run_unless_its_key_is_another() {
    let Some(Fixture { runtime, .. }) = &real(&[]) else {
        return;
    };
    let path = std::env::var("APPLIANCE_XLA_CPU").unwrap();
    let client = pjrt::Plugin::open(path.as_ref()).unwrap().client(&[]);
    let client = client.unwrap();
    let maker = Maker::of(path.as_ref()).unwrap();
    let gives = |name: &str, change: &dyn Fn(&mut Compiled)| {
        let module = sample::counter(name, 1);
        let mut other = module.clone();
        let instructions = &mut other.computations[1].instructions;
        let add = instructions.iter_mut().find(|one| one.opcode == "add");
        add.unwrap().opcode = "multiply".to_owned();
        let source = |module| Source::of(module, 1, client.devices()).unwrap();
        let program = source(&other).compile(&client).unwrap();
        let mut compiled = Compiled {
            key: source(&module).key(&maker),
            program: program.serialize().unwrap(),
        };
        change(&mut compiled);
        let neff = Neff::write_with(&module, &sample::info("trn2", 2, 1), Some(&compiled));
        let bound = Bound::new(runtime, &neff.unwrap(), on(0));
        bound.write([3.0; 4]);
        let twos = bytes([2.0; 4]);
        runtime.write(bound.state, 0, &twos).unwrap();
        bound.execute().unwrap();
        bound.read(bound.state)
    };
    assert_eq!(gives("as it is", &|_| ()), [6.0; 4]);
    assert_eq!(gives("key", &|compiled| compiled.key.push('0')), [5.0; 4]);
    let damaged = gives("damaged", &|compiled| compiled.program.truncate(100));
    assert_eq!(damaged, [5.0; 4]);
}

#[test]
fn ranks_really_reduce() {
    let Some(Fixture { runtime, .. }) = &real(&[]) else {
        return;
    };
    let results = pair(runtime, |rank, bound| {
        let own = if rank == 0 { 1.0 } else { 10.0 };
        for step in [1.0, 2.0, 3.0] {
            bound.write([own, 0.0, own, 0.0]);
            bound.execute().unwrap();
            let (all, mine) = (11.0 * step, own * step);
            assert_eq!(bound.read(bound.sum), [all, 0.0, all, 0.0]);
            assert_eq!(bound.read(bound.state), [mine, 0.0, mine, 0.0]);
        }
        vec![Ok(())]
    });
    assert_eq!(results.map(|rank| rank.len()), [1, 1]);
}

#[test]
fn a_whole_machine_reduces() {
    let Some(Fixture { runtime, .. }) = &real(&[("FAKE_NRT_INSTANCE", "trn1.32xlarge")]) else {
        return;
    };
    let neff = Neff::write(&sample::counter("c", 32), &sample::info("trn1", 1, 32)).unwrap();
    std::thread::scope(|scope| {
        for rank in 0..32_u8 {
            let neff = &neff;
            scope.spawn(move || {
                let target = as_rank(rank.into(), rank.into(), 32);
                let bound = Bound::new(runtime, neff, target);
                bound.write([rank.into(), 1.0, 0.0, 0.0]);
                bound.execute().unwrap();
                assert_eq!(bound.read(bound.sum), [496.0, 32.0, 0.0, 0.0]);
                assert_eq!(bound.read(bound.state), [rank.into(), 1.0, 0.0, 0.0]);
            });
        }
    });
}
