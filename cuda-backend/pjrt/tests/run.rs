//! A plugin for the CPU compiles and runs small modules. `cargo xtask test` names the plugin in
//! `APPLIANCE_XLA_CPU`; without it there is nothing to test.

mod hlo;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use hlo::{BF16, Computation, F32, S32, alias, array, module, pair};
use pjrt::{Buffer, Client, CompileOptions, Element, Error, Executable, Plugin, Refusal, Value};

/// A client with four devices, or `None` and a word about it.
fn client() -> Option<Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    CLIENT
        .get_or_init(|| {
            let Some(path) = std::env::var_os("APPLIANCE_XLA_CPU").map(PathBuf::from) else {
                eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
                return None;
            };
            let plugin = Plugin::open(&path).expect("a plugin");
            let devices = ("cpu_device_count", Value::Integer(4));
            Some(plugin.client(&[devices]).expect("a client"))
        })
        .clone()
}

fn compile(client: &Client, module: &[u8], replicas: u32) -> Executable {
    let options = CompileOptions {
        replicas,
        ..CompileOptions::default()
    };
    client.compile(module, &options).expect("a program")
}

fn floats(client: &Client, device: i32, values: &[f32]) -> Buffer {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let dims = [values.len() as i64];
    client
        .buffer(device, Element::F32, &dims, &bytes)
        .expect("an array")
}

fn read(buffer: &Buffer) -> Vec<f32> {
    let len: i64 = buffer.dims().expect("sizes").iter().product();
    let mut bytes = vec![0; usize::try_from(len).expect("a size") * 4];
    buffer.to_host(&mut bytes).expect("a copy");
    bytes
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        .collect()
}

/// `parameter 0 + parameter 1`, both `f32[2]`.
fn sum() -> Vec<u8> {
    let shape = array(F32, &[2]);
    let mut main = Computation::new("main");
    let left = main.parameter(0, &shape);
    let right = main.parameter(1, &shape);
    main.op("add", &shape, &[left, right], |_| ());
    module(&[main], &[])
}

/// The sum of `parameter 0`, `f32[2]`, over as many ranks.
fn sum_of_ranks(ranks: i64) -> Vec<u8> {
    let shape = array(F32, &[2]);
    let mut main = Computation::new("main");
    let own = main.parameter(0, &shape);
    main.op("all-reduce", &shape, &[own], |op| {
        op.number(38, 1);
        op.nested(49, |group| {
            (0..ranks).for_each(|rank| group.number(1, rank))
        });
    });
    module(&[hlo::adder(), main], &[])
}

#[test]
fn two_arrays_are_added() {
    let Some(client) = client() else { return };
    let program = compile(&client, &sum(), 1);
    let device = client.devices()[0];
    let (left, right) = (
        floats(&client, device, &[1.0, 2.0]),
        floats(&client, device, &[10.0, 20.0]),
    );
    let results = program.execute(&[vec![&left, &right]]).unwrap();
    assert_eq!(read(&results[0][0]), [11.0, 22.0]);
    assert_eq!(results[0][0].element().unwrap(), Element::F32);
    assert_eq!(results[0][0].dims().unwrap(), [2]);
    assert_eq!(program.devices(), [device]);
    assert_eq!(program.outputs(), 1);
    assert_eq!(client.platform().unwrap(), "cpu");
}

#[test]
fn a_dot_of_bf16_sums_in_f32() {
    let Some(client) = client() else { return };
    let shape = array(BF16, &[1024]);
    let mut main = Computation::new("main");
    let left = main.parameter(0, &shape);
    let right = main.parameter(1, &shape);
    main.op("dot", &array(F32, &[]), &[left, right], |op| {
        op.nested(30, |dims| {
            dims.number(1, 0);
            dims.number(2, 0);
        });
    });
    let program = compile(&client, &module(&[main], &[]), 1);
    let ones: Vec<u8> = 0x3f80_u16.to_le_bytes().repeat(1024);
    let ones = client
        .buffer(client.devices()[0], Element::Bf16, &[1024], &ones)
        .unwrap();
    let results = program.execute(&[vec![&ones, &ones]]).unwrap();
    // In BF16 the sum would stick at 256.
    assert_eq!(read(&results[0][0]), [1024.0]);
}

#[test]
fn a_rounding_is_kept_where_excess_precision_is_off() {
    let Some(client) = client() else { return };
    let (wide, narrow) = (array(F32, &[1]), array(BF16, &[1]));
    let mut main = Computation::new("main");
    let given = main.parameter(0, &wide);
    let rounded = main.op("convert", &narrow, &[given], |_| ());
    main.op("convert", &wide, &[rounded], |_| ());
    let options = CompileOptions::default().flag("xla_allow_excess_precision", Value::Truth(false));
    let program = client.compile(&module(&[main], &[]), &options).unwrap();
    let given = floats(&client, client.devices()[0], &[1.001]);
    let results = program.execute(&[vec![&given]]).unwrap();
    assert_eq!(read(&results[0][0]), [1.0]);
}

#[test]
fn ranks_are_summed_on_the_devices_that_were_asked_for() {
    let Some(client) = client() else { return };
    let devices = client.devices()[2..4].to_vec();
    let options = CompileOptions {
        replicas: 2,
        devices: Some(devices.clone()),
        ..CompileOptions::default()
    };
    let program = client.compile(&sum_of_ranks(2), &options).unwrap();
    let first = floats(&client, devices[0], &[1.0, 2.0]);
    let second = floats(&client, devices[1], &[10.0, 20.0]);
    let results = program.execute(&[vec![&first], vec![&second]]).unwrap();
    assert_eq!(read(&results[0][0]), [11.0, 22.0]);
    assert_eq!(read(&results[1][0]), [11.0, 22.0]);
}

/// Would a device begin alone, it would wait in the sum for the other until the process ends.
#[test]
fn arguments_that_fit_some_devices_only_are_refused_on_all() {
    let Some(client) = client() else { return };
    let program = compile(&client, &sum_of_ranks(2), 2);
    let devices = client.devices();
    let refused =
        |first: &Buffer, second: &Buffer| match program.execute(&[vec![first], vec![second]]) {
            Err(Error::Argument { device, cause, .. }) => (device, cause),
            other => panic!("{other:?}"),
        };
    let first = floats(&client, devices[0], &[1.0, 2.0]);
    let elsewhere = floats(&client, devices[2], &[1.0, 2.0]);
    let cause = Refusal::OtherDevice(devices[2]);
    assert_eq!(refused(&first, &elsewhere), (devices[1], cause));
    let longer = floats(&client, devices[1], &[1.0, 2.0, 3.0]);
    assert_eq!(refused(&first, &longer), (devices[1], Refusal::OtherForm));
    let named_twice = CompileOptions {
        replicas: 2,
        devices: Some(vec![devices[1]; 2]),
        ..CompileOptions::default()
    };
    let twice = client.compile(&sum_of_ranks(2), &named_twice);
    assert!(
        matches!(twice, Err(Error::Assignment { count: 2, .. })),
        "{twice:?}"
    );
}

#[test]
fn an_aliased_input_is_deleted_and_its_memory_is_the_output() {
    let Some(client) = client() else { return };
    let shape = array(F32, &[2]);
    let mut main = Computation::new("main");
    let cache = main.parameter(0, &shape);
    let step = main.parameter(1, &shape);
    let written = main.op("add", &shape, &[cache, step], |_| ());
    let other = main.op("negate", &shape, &[written], |_| ());
    main.op("tuple", &pair(&shape, &shape), &[other, written], |_| ());
    let program = compile(&client, &module(&[main], &[alias(1, 0)]), 1);
    let device = client.devices()[0];
    let (cache, step) = (
        floats(&client, device, &[1.0, 2.0]),
        floats(&client, device, &[1.0, 1.0]),
    );
    let results = program.execute(&[vec![&cache, &step]]).unwrap();
    assert!(cache.is_deleted().unwrap());
    assert!(!step.is_deleted().unwrap());
    assert_eq!(read(&results[0][0]), [-2.0, -3.0]);
    assert_eq!(read(&results[0][1]), [2.0, 3.0]);
    assert!(cache.to_host(&mut [0; 8]).is_err());
    let again = program.execute(&[vec![&cache, &step]]);
    let deleted = matches!(
        again,
        Err(Error::Argument {
            argument: 0,
            cause: Refusal::Deleted,
            ..
        })
    );
    assert!(deleted, "{again:?}");
}

/// Of another client, on other devices: what was compiled does not know where it will run.
#[test]
fn a_program_that_was_serialized_is_loaded_for_other_devices() {
    let Some(client) = client() else { return };
    let path = std::env::var_os("APPLIANCE_XLA_CPU").unwrap();
    let plugin = Plugin::open(Path::new(&path)).unwrap();
    for ranks in [1, 2, 4] {
        let count = Value::Integer(ranks.into());
        let maker = plugin.client(&[("cpu_device_count", count)]).unwrap();
        let replicas = u32::try_from(ranks).unwrap();
        let made = compile(&maker, &sum_of_ranks(ranks.into()), replicas);
        let bytes = made.serialize().unwrap();
        drop((made, maker));
        let count = usize::try_from(ranks).unwrap();
        let devices: Vec<_> = client.devices().iter().rev().take(count).copied().collect();
        let options = CompileOptions {
            replicas,
            devices: Some(devices.clone()),
            ..CompileOptions::default()
        };
        let program = client.load(&bytes, &options).unwrap();
        assert_eq!(
            (program.devices(), program.outputs()),
            (devices.as_slice(), 1)
        );
        let arrays: Vec<_> = devices
            .iter()
            .zip([1.0, 10.0, 100.0, 1000.0])
            .map(|(device, value)| floats(&client, *device, &[value, -value]))
            .collect();
        let lists: Vec<_> = arrays.iter().map(|array| vec![array]).collect();
        let sum = [1.0, 11.0, 111.0, 1111.0][count - 1];
        for results in program.execute(&lists).unwrap() {
            assert_eq!(read(&results[0]), [sum, -sum]);
        }
    }
}

#[test]
fn a_loaded_program_gives_away_what_the_compiled_one_did() {
    let Some(client) = client() else { return };
    let shape = array(F32, &[2]);
    let mut main = Computation::new("main");
    let cache = main.parameter(0, &shape);
    let written = main.op("negate", &shape, &[cache], |_| ());
    let other = main.op("negate", &shape, &[written], |_| ());
    main.op("tuple", &pair(&shape, &shape), &[other, written], |_| ());
    let compiled = compile(&client, &module(&[main], &[alias(1, 0)]), 1);
    let bytes = compiled.serialize().unwrap();
    let program = client.load(&bytes, &CompileOptions::default()).unwrap();
    let cache = floats(&client, client.devices()[0], &[1.0, 2.0]);
    let results = program.execute(&[vec![&cache]]).unwrap();
    assert!(cache.is_deleted().unwrap());
    assert_eq!(read(&results[0][1]), [-1.0, -2.0]);
}

#[test]
fn what_is_no_program_is_not_loaded() {
    let Some(client) = client() else { return };
    let refused = client.load(b"no program", &CompileOptions::default());
    let error = refused.expect_err("no program").to_string();
    assert!(error.contains("could not load the program"), "{error}");
}

#[test]
fn a_module_that_is_wrong_is_refused_with_the_compilers_words() {
    let Some(client) = client() else { return };
    let mut main = Computation::new("main");
    let left = main.parameter(0, &array(F32, &[2]));
    let right = main.parameter(1, &array(S32, &[3]));
    main.op("add", &array(F32, &[2]), &[left, right], |_| ());
    let refused = client.compile(&module(&[main], &[]), &CompileOptions::default());
    let error = refused.expect_err("shapes that do not fit").to_string();
    assert!(error.contains("could not compile the module"), "{error}");
    assert!(error.contains("add"), "{error}");
    let garbage = client.compile(b"no module", &CompileOptions::default());
    assert!(matches!(garbage, Err(Error::Plugin { .. })), "{garbage:?}");
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let Some(client) = client() else { return };
    let program = compile(&client, &sum(), 1);
    let device = client.devices()[0];
    let two = floats(&client, device, &[1.0, 2.0]);
    let three = floats(&client, device, &[1.0, 2.0, 3.0]);
    assert!(matches!(
        program.execute(&[]),
        Err(Error::Arguments { devices: 1, .. })
    ));
    let few = program.execute(&[vec![&two]]);
    assert!(matches!(few, Err(Error::Plugin { .. })), "{few:?}");
    let large = program.execute(&[vec![&two, &three]]);
    assert!(matches!(large, Err(Error::Plugin { .. })), "{large:?}");
    let bytes = client.buffer(device, Element::F32, &[2], &[0; 7]);
    assert!(matches!(
        bytes,
        Err(Error::Bytes {
            needed: 8,
            given: 7,
            ..
        })
    ));
    let nowhere = client.buffer(99, Element::F32, &[1], &[0; 4]);
    assert!(matches!(nowhere, Err(Error::Device { device: 99, .. })));
}

#[test]
fn an_array_of_another_client_is_refused() {
    let Some(client) = client() else { return };
    let path = std::env::var_os("APPLIANCE_XLA_CPU").unwrap();
    let other = Plugin::open(Path::new(&path)).unwrap().client(&[]).unwrap();
    let foreign = floats(&other, other.devices()[0], &[1.0, 2.0]);
    // The array keeps its client alive.
    drop(other);
    let own = floats(&client, client.devices()[0], &[1.0, 2.0]);
    let error = compile(&client, &sum(), 1).execute(&[vec![&own, &foreign]]);
    let foreign = matches!(
        error,
        Err(Error::Argument {
            argument: 1,
            cause: Refusal::OtherClient,
            ..
        })
    );
    assert!(foreign, "{error:?}");
}

#[test]
fn programs_run_from_several_threads_at_once() {
    let Some(client) = client() else { return };
    let pairs: Vec<_> = client.devices().chunks(2).map(<[i32]>::to_vec).collect();
    thread::scope(|scope| {
        for (group, devices) in pairs.iter().enumerate() {
            let client = &client;
            scope.spawn(move || {
                let options = CompileOptions {
                    replicas: 2,
                    devices: Some(devices.clone()),
                    ..CompileOptions::default()
                };
                let program = client.compile(&sum_of_ranks(2), &options).unwrap();
                for turn in 0..200_u16 {
                    let value = f32::from(turn) + group as f32 * 1000.0;
                    let first = floats(client, devices[0], &[value, 0.0]);
                    let second = floats(client, devices[1], &[1.0, 1.0]);
                    let results = program.execute(&[vec![&first], vec![&second]]).unwrap();
                    assert_eq!(read(&results[1][0]), [value + 1.0, 1.0]);
                }
            });
        }
    });
}

#[test]
fn one_program_runs_from_several_threads_at_once() {
    let Some(client) = client() else { return };
    let program = compile(&client, &sum(), 1);
    thread::scope(|scope| {
        for group in 0..4_u16 {
            let (client, program) = (&client, &program);
            scope.spawn(move || {
                let device = client.devices()[0];
                for turn in 0..200_u16 {
                    let value = f32::from(turn + group * 1000);
                    let own = floats(client, device, &[value, 1.0]);
                    let results = program.execute(&[vec![&own, &own]]).unwrap();
                    assert_eq!(read(&results[0][0]), [value * 2.0, 2.0]);
                }
            });
        }
    });
}

#[test]
fn what_is_no_plugin_is_refused() {
    let error = Plugin::open(Path::new("/nowhere/plugin.so")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/plugin.so"), "{error}");
    // A library, though none of XLA's.
    let error = Plugin::open(Path::new("libc.so.6")).unwrap_err();
    assert!(matches!(error, Error::Open { .. }), "{error}");
}
