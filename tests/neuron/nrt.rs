//! libnrt made safe: what a runtime, models, tensors and sets do, and what ranks do with them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use graph::Target;
use neuron_backend::nrt::{
    Libnrt, Model, NrtError, Rank, Runtime, Settings, StartError, Status, Tensor, TensorInfo,
    TensorSet, Usage,
};
use neuron_backend::ranks::{Places, Ranks};
use nrt::neff::Neff;
use nrt::sample;

use crate::alone::Alone;

const SOON: Duration = Duration::from_secs(60);

/// Bytes of the arrays of [`sample`].
const BYTES: usize = 16;

/// Four logical cores of a Trainium2.
fn settings() -> Settings {
    Settings::new(0..4, 2)
}

fn alone(test: &'static str) -> Alone {
    Alone::new(test, "trn2.48xlarge", settings())
}

fn started() -> Runtime {
    let libnrt = Libnrt::open(None).expect("the stand-in was built with this test");
    Runtime::start(libnrt, &settings()).expect("the environment says so")
}

/// A module that adds up what it is given: see [`sample::counter`].
fn neff(ranks: u32) -> Vec<u8> {
    let info = sample::info("trn2", 2, ranks);
    Neff::write(&sample::counter("counter", ranks), &info).expect("a module that can be")
}

fn numbers(of: &Tensor) -> Vec<f32> {
    let mut bytes = vec![0; of.size()];
    of.read(0, &mut bytes).expect("it can be read");
    let numbers = bytes.as_chunks().0.iter();
    numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn write(into: &Tensor, numbers: [f32; 4]) {
    let bytes: Vec<_> = numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    into.write(0, &bytes).expect("it can be written");
}

/// A loaded counter with all it needs.
#[derive(Debug)]
struct Counter {
    model: Model,
    inputs: TensorSet,
    outputs: TensorSet,
    x: Rc<Tensor>,
    state: Rc<Tensor>,
    sum: Rc<Tensor>,
}

impl Counter {
    fn new(runtime: &Runtime, model: Model, core: u32) -> Result<Self, NrtError> {
        let tensor = |name| Tensor::allocate(runtime, core, BYTES, name).map(Rc::new);
        let (x, state, sum) = (tensor("x")?, tensor("state")?, tensor("sum")?);
        state.zero()?;
        let mut inputs = TensorSet::new(runtime)?;
        inputs.bind("x", &x)?;
        inputs.bind("state.must_alias_input", &state)?;
        let mut outputs = TensorSet::new(runtime)?;
        outputs.bind("sum", &sum)?;
        outputs.bind("state", &state)?;
        Ok(Self {
            model,
            inputs,
            outputs,
            x,
            state,
            sum,
        })
    }

    fn execute(&self) -> Result<(), Status> {
        self.model.execute(&self.inputs, &self.outputs)
    }
}

#[test]
fn what_is_here_is_told_before_a_core_is_taken() {
    alone("nrt::what_is_here_is_told_before_a_core_is_taken").run(|| {
        let libnrt = Libnrt::open(None).expect("the stand-in was built with this test");
        assert_eq!(libnrt.version().to_string(), "2.34.10.0");
        let instance = libnrt.instance().expect("it knows");
        assert_eq!(instance.target(), Some(Target::Trn2));
        assert_eq!(libnrt.total_cores(), Ok(64));
        assert_eq!(libnrt.visible_cores(), Ok(4));
    });
}

#[test]
fn a_runtime_wants_its_environment_first() {
    let test = alone("nrt::a_runtime_wants_its_environment_first").unprepared();
    test.run(|| {
        let libnrt = Libnrt::open(None).expect("the stand-in was built with this test");
        let error = Runtime::start(libnrt, &settings()).expect_err("nobody set it");
        let text = error.to_string();
        assert!(text.contains("NEURON_RT_VISIBLE_CORES=0-3"), "{text}");
        assert!(text.contains("NEURON_LOGICAL_NC_CONFIG=2"), "{text}");
    });
}

#[test]
fn ranks_without_a_barrier_are_refused() {
    let test = alone("nrt::ranks_without_a_barrier_are_refused");
    test.with("NEURON_RT_DISABLE_EXECUTION_BARRIER", "1")
        .run(|| {
            let libnrt = Libnrt::open(None).expect("the stand-in was built with this test");
            let error = Runtime::start(libnrt, &settings()).expect_err("answers would be wrong");
            assert!(matches!(error, StartError::Harmful { .. }), "{error}");
        });
}

#[test]
fn a_process_has_one_runtime_until_nothing_of_it_is_left() {
    let test = alone("nrt::a_process_has_one_runtime_until_nothing_of_it_is_left");
    test.with("FAKE_NRT_REINIT", "1").run(|| {
        let runtime = started();
        let tensor = Tensor::allocate(&runtime, 0, BYTES, "last").expect("there is room");
        drop(runtime);
        let again = || {
            let libnrt = Libnrt::open(None).expect("the stand-in was built with this test");
            Runtime::start(libnrt, &settings())
        };
        let error = again().expect_err("a tensor is left");
        assert!(matches!(error, StartError::Running), "{error}");
        tensor.zero().expect("its runtime is still there");
        drop(tensor);
        again().expect("nothing is left");
    });
}

#[test]
fn a_runtime_that_refuses_says_where_to_look_and_can_be_asked_again() {
    let test = alone("nrt::a_runtime_that_refuses_says_where_to_look_and_can_be_asked_again");
    test.failing("init status=1").run(|| {
        // The second time it is the runtime that refuses again, not this crate.
        for _ in 0..2 {
            let libnrt = Libnrt::open(None).expect("the stand-in was built with this test");
            let error = Runtime::start(libnrt, &settings()).expect_err("it was told to");
            let text = error.to_string();
            let expected = "nrt_init failed (cores 0 to 3): NRT_FAILURE (1)";
            assert!(text.starts_with(expected), "{text}");
            assert!(text.contains("neuron-ls"), "{text}");
        }
    });
}

#[test]
fn tensors_keep_what_is_written_where_it_is_written() {
    alone("nrt::tensors_keep_what_is_written_where_it_is_written").run(|| {
        let runtime = started();
        let tensor = Tensor::allocate(&runtime, 1, 12, "numbers").expect("there is room");
        tensor.zero().expect("it can be");
        tensor.write(4, &[1, 2, 3, 4]).expect("it fits");
        let slice = tensor.slice(6, 4, "middle").expect("it fits");
        slice.write(1, &[9]).expect("it fits");
        let mut bytes = [0; 12];
        tensor.read(0, &mut bytes).expect("it fits");
        assert_eq!(bytes, [0, 0, 0, 0, 1, 2, 3, 9, 0, 0, 0, 0]);
        drop(tensor);
        let mut bytes = [0; 2];
        slice.read(0, &mut bytes).expect("it keeps the bytes");
        assert_eq!((bytes, slice.size()), ([3, 9], 4));
    });
}

#[test]
fn nothing_reaches_beyond_a_tensor() {
    alone("nrt::nothing_reaches_beyond_a_tensor").run(|| {
        let runtime = started();
        let tensor = Tensor::allocate(&runtime, 0, 8, "short").expect("there is room");
        let error = tensor.write(5, &[0; 4]).expect_err("too far");
        assert_eq!(
            error.to_string(),
            "nrt_tensor_write failed (4 bytes from 5 on of 8): NRT_INVALID (2): an argument, a \
             NEFF or a tensor does not fit"
        );
        assert!(tensor.read(usize::MAX, &mut [0; 2]).is_err());
        assert!(tensor.slice(8, 1, "beyond").is_err());
    });
}

#[test]
fn memory_that_is_given_back_is_there_again() {
    let test = alone("nrt::memory_that_is_given_back_is_there_again");
    test.with("FAKE_NRT_HBM_BYTES", "1000000000").run(|| {
        let runtime = started();
        let memory = || {
            runtime
                .memory(0)
                .expect("there is such a core")
                .expect("it tells")
        };
        let before = memory();
        assert_eq!(before.limit, 1_000_000_000);
        let tensor = Tensor::allocate(&runtime, 0, 500_000_000, "half").expect("there is room");
        assert!(memory().used >= before.used + 500_000_000);
        let error = Tensor::allocate(&runtime, 0, 500_000_000, "other half").expect_err("full");
        assert_eq!(error.status, Status::RESOURCE);
        assert!(
            error
                .to_string()
                .contains("other half, 500000000 bytes on core 0"),
            "{error}"
        );
        drop(tensor);
        assert_eq!(memory(), before);
        assert!(runtime.memory(4).is_err(), "this process has four cores");
    });
}

#[test]
fn a_model_lists_its_inputs_and_outputs() {
    alone("nrt::a_model_lists_its_inputs_and_outputs").run(|| {
        let runtime = started();
        let model = Model::load(&runtime, &neff(1), 0).expect("it can be loaded");
        let of = |usage| {
            let tensors = model.tensors().iter();
            let of = tensors.filter(move |tensor: &&TensorInfo| tensor.usage == usage);
            of.map(|tensor| tensor.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(of(Usage::Input), ["x", "state.must_alias_input"]);
        assert_eq!(of(Usage::Output), ["sum", "state"]);
        let sizes = model
            .tensors()
            .iter()
            .map(|tensor| (tensor.size, &tensor.shape[..]));
        assert!(sizes.into_iter().all(|size| size == (BYTES, &[4][..])));
    });
}

#[test]
fn what_is_no_neff_is_refused_with_its_size() {
    alone("nrt::what_is_no_neff_is_refused_with_its_size").run(|| {
        let runtime = started();
        let error = Model::load(&runtime, b"not a NEFF", 2).expect_err("nonsense");
        assert_eq!(
            (error.operation, error.status),
            ("nrt_load", Status::INVALID)
        );
        assert_eq!(error.detail, "core 2, NEFF of 10 bytes");
    });
}

#[test]
fn a_set_keeps_its_tensors_however_long_it_lives() {
    alone("nrt::a_set_keeps_its_tensors_however_long_it_lives").run(|| {
        let runtime = started();
        let model = Model::load(&runtime, &neff(1), 0).expect("it can be loaded");
        let counter = Counter::new(&runtime, model, 0).expect("there is room");
        let Counter {
            model,
            mut inputs,
            outputs,
            x,
            ..
        } = counter;
        // Bound again: the one before may go now and not earlier.
        let other = Rc::new(Tensor::allocate(&runtime, 0, BYTES, "other").expect("there is room"));
        inputs.bind("x", &other).expect("it can be bound");
        assert_eq!(Rc::strong_count(&x), 1);
        drop((x, other, runtime));
        assert_eq!((inputs.len(), outputs.len()), (2, 2));
        assert_eq!(model.execute(&inputs, &outputs), Ok(()));
    });
}

#[test]
fn an_execution_changes_its_state_in_place() {
    let test = alone("nrt::an_execution_changes_its_state_in_place").computing();
    let Some(test) = test else { return };
    test.run(|| {
        let runtime = started();
        let model = Model::load(&runtime, &neff(1), 0).expect("it can be loaded");
        let counter = Counter::new(&runtime, model, 0).expect("there is room");
        write(&counter.x, [1.0, 2.0, 3.0, 4.0]);
        for round in [1.0, 2.0, 3.0] {
            assert_eq!(counter.execute(), Ok(()));
            let expected = [1.0, 2.0, 3.0, 4.0].map(|number: f32| number * round);
            assert_eq!(numbers(&counter.state), expected);
            assert_eq!(numbers(&counter.sum), expected);
        }
    });
}

#[test]
fn a_missing_tensor_fails_the_execution_and_nothing_else() {
    alone("nrt::a_missing_tensor_fails_the_execution_and_nothing_else").run(|| {
        let runtime = started();
        let model = Model::load(&runtime, &neff(1), 0).expect("it can be loaded");
        let counter = Counter::new(&runtime, model, 0).expect("there is room");
        let empty = TensorSet::new(&runtime).expect("there is room");
        let refused = counter.model.execute(&empty, &counter.outputs);
        assert_eq!(refused, Err(Status::EXEC_BAD_INPUT));
        assert_eq!(counter.execute(), Ok(()));
    });
}

#[test]
fn the_status_of_an_execution_is_carried_whatever_it_is() {
    let test = alone("nrt::the_status_of_an_execution_is_carried_whatever_it_is");
    let faults = "execute status=1006 at=1\nexecute status=1205 at=2\nexecute status=5 at=3\n";
    test.failing(faults).run(|| {
        let runtime = started();
        let model = Model::load(&runtime, &neff(1), 0).expect("it can be loaded");
        let counter = Counter::new(&runtime, model, 0).expect("there is room");
        assert_eq!(counter.execute(), Err(Status::EXEC_OOB));
        assert_eq!(
            counter.execute(),
            Err(Status::EXEC_HW_ERR_REPAIRABLE_HBM_UE)
        );
        assert_eq!(counter.execute(), Err(Status::TIMEOUT));
        assert_eq!(counter.execute(), Ok(()));
    });
}

/// Loads a part of one module on each rank, all at the same time.
fn counters(ranks: u32) -> Ranks<Option<Counter>> {
    let runtime = started();
    let neff: Arc<[u8]> = neff(ranks).into();
    let threads = Ranks::start(ranks as usize, &Places::anywhere(), |_| None);
    let mut threads = threads.expect("a few threads");
    let flight = threads.begin(move |index, state| -> Result<(), NrtError> {
        let index = u32::try_from(index).expect("few ranks");
        let rank = Rank {
            index,
            count: ranks,
        };
        let model = Model::load_collectives(&runtime, &neff, index, rank)?;
        *state = Some(Counter::new(&runtime, model, index)?);
        Ok(())
    });
    let loaded = flight.wait(SOON).expect("in time");
    assert!(
        loaded.iter().all(|loaded| *loaded == Ok(Ok(()))),
        "{loaded:?}"
    );
    threads
}

fn execute(_: usize, counter: &mut Option<Counter>) -> Option<Result<(), Status>> {
    Some(counter.as_ref()?.execute())
}

#[test]
fn ranks_load_and_compute_together() {
    let test = alone("nrt::ranks_load_and_compute_together").computing();
    let Some(test) = test else { return };
    test.run(|| {
        let mut ranks = counters(4);
        ranks.each(|rank, counter| {
            let counter = counter.as_ref().expect("it was loaded");
            write(&counter.x, [1.0, 10.0, 100.0, rank as f32]);
        });
        // The next is handed out before the last one is done.
        let first = ranks.begin(execute);
        let second = ranks.begin(execute);
        for flight in [first, second] {
            let done = flight.wait(SOON).expect("in time");
            assert!(
                done.iter().all(|done| *done == Ok(Some(Ok(())))),
                "{done:?}"
            );
        }
        let sums = ranks.each(|_, counter| numbers(&counter.as_ref().expect("loaded").sum));
        let sum = vec![8.0, 80.0, 800.0, 12.0];
        assert!(
            sums.iter().all(|found| found.as_ref() == Ok(&sum)),
            "{sums:?}"
        );
    });
}

#[test]
fn a_rank_that_nobody_joins_is_told_as_hung() {
    alone("nrt::a_rank_that_nobody_joins_is_told_as_hung").run(|| {
        let mut ranks = counters(2);
        let flight = ranks
            .begin(|rank, counter| (rank == 0).then(|| counter.as_ref().map(Counter::execute)));
        let hung = flight
            .wait(Duration::from_millis(200))
            .expect_err("rank 1 is not there");
        assert!(hung.silent.contains(&0), "{hung}");
        // What hangs keeps the runtime; the process ends without closing it.
        drop(ranks);
    });
}

#[test]
fn a_rank_that_panics_is_told_and_the_others_are_told_as_hung() {
    alone("nrt::a_rank_that_panics_is_told_and_the_others_are_told_as_hung").run(|| {
        let mut ranks = counters(2);
        let flight = ranks.begin(|rank, counter| {
            assert_ne!(rank, 1, "a bug");
            execute(rank, counter)
        });
        let hung = flight
            .wait(Duration::from_millis(200))
            .expect_err("rank 0 waits for rank 1");
        assert!(hung.silent.contains(&0), "{hung}");
    });
}
