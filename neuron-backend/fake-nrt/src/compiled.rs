//! What XLA makes of a module, as a NEFF may carry it in `xla.bin`: `fake-neuronx-cc` compiles once,
//! and whoever loads the NEFF does not wait for XLA again. It is machine code of one plugin for one
//! kind of processor, so a key says what it was made of and by whom; under any other key the module
//! is compiled as if there were none.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use graph::proto::HloModule;
use pjrt::{Client, CompileOptions, Executable};
use sha2::{Digest as _, Sha256};

use crate::program::{self, ProgramError};

/// Bytes of the plugin's beginning and end that tell it from others, with its length: they hold the
/// tables of its symbols and of its sections. All 260 MB would cost every process half a second.
const MARK: u64 = 1 << 20;

/// A program of XLA's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compiled {
    /// See [`Source::key`].
    pub key: String,
    /// What [`Executable::serialize`] gave.
    pub program: Vec<u8>,
}

/// The plugin and the processor that programs are made by and for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Maker(Vec<u8>);

impl Maker {
    /// This machine's processor, and the plugin in the file at `path`.
    ///
    /// # Errors
    /// The plugin or the system's description of the processor cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        let mut digest = Sha256::new();
        let mut plugin = File::open(path)?;
        let size = plugin.metadata()?.len();
        digest.update(size.to_le_bytes());
        let mut part = Vec::new();
        plugin.by_ref().take(MARK).read_to_end(&mut part)?;
        plugin.seek(SeekFrom::Start(size.saturating_sub(MARK)))?;
        plugin.read_to_end(&mut part)?;
        digest.update(&part);
        digest.update(processor()?);
        Ok(Self(digest.finalize().to_vec()))
    }
}

/// What the first processor is and can do.
fn processor() -> io::Result<String> {
    const TELLING: [&str; 5] = ["vendor_id", "cpu family", "model", "flags", "Features"];
    let all = std::fs::read_to_string("/proc/cpuinfo")?;
    let first = all.lines().take_while(|line| !line.is_empty());
    let telling = first.filter(|line| {
        let name = line.split(':').next().unwrap_or_default();
        TELLING.contains(&name.trim())
    });
    Ok(telling.collect::<Vec<_>>().join("\n"))
}

/// All that XLA is given.
#[derive(Clone, Debug)]
pub struct Source {
    module: Vec<u8>,
    options: CompileOptions,
}

impl Source {
    /// Of a module that so many ranks run, the first on the first of `devices`.
    ///
    /// # Errors
    /// The module calls what XLA does not have.
    pub fn of(module: &HloModule, ranks: u32, devices: &[i32]) -> Result<Self, ProgramError> {
        Ok(Self {
            module: program::for_xla(module)?.to_bytes(),
            options: program::options(ranks, devices),
        })
    }

    /// What a program depends on, in short: the module as XLA takes it, the options, and the maker.
    /// The devices are chosen anew whenever it is loaded.
    pub fn key(&self, maker: &Maker) -> String {
        let anywhere = CompileOptions {
            devices: None,
            ..self.options.clone()
        };
        let mut digest = Sha256::new();
        digest.update(&maker.0);
        digest.update(Sha256::digest(format!("{anywhere:?}")));
        digest.update(&self.module);
        let digest = digest.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Compiles it.
    ///
    /// # Errors
    /// XLA refuses it.
    pub fn compile(&self, client: &Client) -> Result<Executable, pjrt::Error> {
        client.compile(&self.module, &self.options)
    }

    /// The program that was made of the same by the same before, unless it was not or XLA does not
    /// take it.
    pub fn load(&self, client: &Client, maker: &Maker, compiled: &Compiled) -> Option<Executable> {
        if compiled.key != self.key(maker) {
            return None;
        }
        client.load(&compiled.program, &self.options).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use pjrt::{Buffer, Element, Plugin, Value};

    use super::*;
    use crate::sample;

    fn source(name: &str, ranks: u32, devices: &[i32]) -> Source {
        Source::of(&sample::counter(name, ranks), ranks, devices).unwrap()
    }

    #[test]
    fn the_key_is_that_of_module_ranks_and_maker_wherever_it_runs() {
        let (here, elsewhere) = (Maker(vec![1]), Maker(vec![2]));
        let key = source("c", 2, &[0, 1]).key(&here);
        assert_eq!(source("c", 2, &[2, 3]).key(&here), key);
        assert_ne!(source("c", 2, &[0, 1]).key(&elsewhere), key);
        assert_ne!(source("d", 2, &[0, 1]).key(&here), key);
        assert_ne!(source("c", 1, &[0]).key(&here), key);
        let mut more = source("c", 2, &[0, 1]);
        more.options = more.options.flag("xla_cpu_use_onednn", Value::Truth(true));
        assert_ne!(more.key(&here), key);
    }

    #[test]
    fn another_file_is_another_maker() {
        let folder = tempfile::tempdir().unwrap();
        let maker = |name: &str, contents: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, contents).unwrap();
            Maker::of(&path).unwrap()
        };
        let mut large = vec![7; 3 << 20];
        let plain = maker("plain", &large);
        assert_eq!(maker("copy", &large), plain);
        large[(3 << 20) - 1] = 0;
        assert_ne!(maker("other", &large), plain);
        assert_ne!(maker("short", &large[..1]), plain);
        assert!(Maker::of(&folder.path().join("nowhere")).is_err());
        assert!(processor().unwrap().contains(':'));
    }

    /// What a program gives for the same inputs on each of so many devices, as bytes.
    fn results(client: &Client, program: &Executable) -> Vec<Vec<u8>> {
        let array = |device: i32, number: f32| {
            let bytes = (number + 0.1).to_le_bytes().repeat(4);
            let array = client.buffer(device, Element::F32, &[4], &bytes);
            array.unwrap()
        };
        let devices = program.devices().iter().zip([1.0, 2.0, 4.0, 8.0]);
        let lists: Vec<[Buffer; 2]> = devices
            .map(|(device, number)| [array(*device, number), array(*device, number * 16.0)])
            .collect();
        let borrowed: Vec<Vec<&Buffer>> = lists.iter().map(|list| list.iter().collect()).collect();
        let results = program.execute(&borrowed).unwrap();
        assert!(lists.iter().all(|[_, state]| state.is_deleted().unwrap()));
        let bytes = results.iter().flatten().map(|array| {
            let mut bytes = vec![0; 16];
            array.to_host(&mut bytes).unwrap();
            bytes
        });
        bytes.collect()
    }

    #[test]
    fn what_was_loaded_computes_as_what_was_compiled() {
        let Some(path) = std::env::var_os("APPLIANCE_XLA_CPU").map(PathBuf::from) else {
            eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
            return;
        };
        let plugin = Plugin::open(&path).unwrap();
        let maker = Maker::of(&path).unwrap();
        let of = |devices| plugin.client(&[("cpu_device_count", Value::Integer(devices))]);
        let all = of(8).unwrap();
        for ranks in [1, 2, 4] {
            let compiler = of(ranks.into()).unwrap();
            let made = source("c", ranks, compiler.devices());
            let compiled = Compiled {
                key: made.key(&maker),
                program: made.compile(&compiler).unwrap().serialize().unwrap(),
            };
            let source = source("c", ranks, all.devices());
            let loaded = source.load(&all, &maker, &compiled).unwrap();
            assert_eq!(loaded.devices().len(), ranks as usize);
            let expected = results(&all, &source.compile(&all).unwrap());
            assert_eq!(results(&all, &loaded), expected, "{ranks} ranks");
            assert!(source.load(&all, &Maker(Vec::new()), &compiled).is_none());
        }
    }
}
