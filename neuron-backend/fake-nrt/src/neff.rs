//! The file that the compiler hands to the runtime: a header of 1,024 bytes as the real one has it
//! (neuron.md 2.7), then a gzipped tar. Ours holds our own description and the module itself instead
//! of machine code:
//!
//! - `info.json`: [`Info`]
//! - `io.json`: [`Io`]
//! - `hlo.pb`: the module's bytes
//! - `xla.bin`, in some: what XLA made of the module, with its key in `info.json` ([`Compiled`])

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use graph::Element;
use graph::proto::{HloComputation, HloInstruction, HloModule, MUST_ALIAS, Shape, TUPLE};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::compiled::Compiled;
use crate::status::{Failure, Status};

/// Bytes of the header.
pub const HEADER: usize = 1024;
/// The version of the format that we write and take: major, minor.
pub const VERSION: (u64, u64) = (2, 0);
/// The features that a runtime takes, as one printed them (aws-neuron-sdk issue 820).
pub const FEATURES: u64 = 0x8000_0000_0000_00ff;
/// What follows the name of an input that shares memory with an output (neuron.md 2.3).
pub const ALIAS_SUFFIX: &str = ".must_alias_input";

/// The parameter's attribute that names it.
const INPUT_NAMES: &str = "neff_input_names";
/// The root's attribute that names the results.
const OUTPUT_NAMES: &str = "neff_output_names";

/// Where each field of the header starts.
mod place {
    pub(super) const PACKAGE: usize = 0;
    pub(super) const HEADER_SIZE: usize = 8;
    pub(super) const DATA_SIZE: usize = 16;
    pub(super) const MAJOR: usize = 24;
    pub(super) const MINOR: usize = 32;
    pub(super) const BUILD: usize = 40;
    pub(super) const CORES: usize = 168;
    pub(super) const HASH: usize = 172;
    pub(super) const UUID: usize = 204;
    pub(super) const NAME: usize = 220;
    pub(super) const REQUESTED: usize = 476;
    pub(super) const PER_NODE: usize = 480;
    pub(super) const FEATURES: usize = 544;
    pub(super) const LNC: usize = 552;
    pub(super) const END: usize = 556;
}

/// Why a file is no NEFF that this runtime runs, or why a module makes none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NeffError {
    /// Shorter than its header, or than the header says.
    #[error(
        "a NEFF of {size} bytes where its header says {expected}: copied in part? compile it again"
    )]
    Size {
        /// Bytes there are.
        size: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// A field of the header is not what it must be.
    #[error("the NEFF's header is damaged: {0}; compile it again")]
    Header(String),
    /// Of another compiler than this runtime goes with.
    #[error(
        "NEFF version {}.{}, features {features:#x} not supported. Currently supporting {}.{} and \
         {FEATURES:#x}: install compiler and runtime of one SDK",
        version.0, version.1, VERSION.0, VERSION.1
    )]
    Version {
        /// Its version.
        version: (u64, u64),
        /// Its features.
        features: u64,
    },
    /// What is after the header is not what its hash says.
    #[error("the NEFF's contents do not have the hash that its header says; compile it again")]
    Hash,
    /// The archive cannot be read.
    #[error("the NEFF's archive cannot be read: {0}; was it made by fake-neuronx-cc?")]
    Archive(String),
    /// The module cannot be what a NEFF runs.
    #[error("no NEFF can be made of the module: {0}")]
    Module(String),
}

impl NeffError {
    /// What `nrt_load` answers.
    pub fn status(&self) -> Status {
        match self {
            Self::Version { .. } => Status::UNSUPPORTED_NEFF_VERSION,
            _ => Status::INVALID,
        }
    }
}

impl From<NeffError> for Failure {
    fn from(error: NeffError) -> Self {
        Self::Status(error.status(), error.to_string())
    }
}

/// What the compiler says about a NEFF.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Info {
    /// The path it was written to, as the real compiler has it.
    pub name: String,
    /// The compiler's version.
    pub compiler: String,
    /// `inf2`, `trn1`, `trn2`, `trn3`.
    pub target: String,
    /// Physical cores of a logical one.
    pub lnc: u32,
    /// Ranks that run it together.
    pub ranks: u32,
    /// Device memory it takes besides its tensors.
    pub reservation: Reservation,
}

/// `info.json`.
#[derive(Serialize, Deserialize)]
struct InfoFile {
    #[serde(flatten)]
    info: Info,
    /// The key of `xla.bin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    xla: Option<String>,
}

/// Device memory that a loaded NEFF takes besides its tensors, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Reservation {
    /// Instructions of all engines.
    pub code: u64,
    /// Rings of DMA descriptors.
    pub rings: u64,
    /// Intermediate results; all NEFFs of a core share the largest.
    pub scratchpad: u64,
}

impl Reservation {
    /// A guess from the module's size, only so that more and larger modules take more: 64 bytes of
    /// code for each 4 KiB that an instruction gives, rings of 32 bytes for each 4 KiB that goes in
    /// or out, and a scratchpad of the two largest intermediate results.
    pub fn guess(module: &HloModule) -> Self {
        const PIECE: u64 = 4096;
        let Some(entry) = entry(module) else {
            return Self::default();
        };
        let mut guess = Self::default();
        let mut largest = [0; 2];
        for instruction in &entry.instructions {
            let bytes = instruction.shape.as_ref().map_or(0, bytes_of);
            match instruction.opcode.as_str() {
                "parameter" => guess.rings += bytes.div_ceil(PIECE) * 32,
                "tuple" | "get-tuple-element" | "constant" | "scatter" | "copy" => {}
                _ => {
                    guess.code += (bytes.div_ceil(PIECE) + 1) * 64;
                    if bytes > largest[0] {
                        largest = [bytes, largest[0]];
                    } else {
                        largest[1] = largest[1].max(bytes);
                    }
                }
            }
        }
        guess.scratchpad = largest.iter().sum();
        guess
    }
}

/// What a NEFF takes and gives.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Io {
    /// By parameter number.
    pub inputs: Vec<Binding>,
    /// By place in the root's tuple.
    pub outputs: Vec<Binding>,
}

/// An input or an output.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Binding {
    /// What the module's attributes call it.
    pub name: String,
    /// Sizes, slowest first.
    pub shape: Vec<u64>,
    /// The type of its elements.
    pub element: Element,
    /// Of an input: the output that shares its memory. Of an output: the input.
    pub alias: Option<usize>,
}

impl Binding {
    /// Bytes of its tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.element.bytes()
    }

    /// Its name without [`ALIAS_SUFFIX`].
    pub fn base(&self) -> &str {
        self.name.strip_suffix(ALIAS_SUFFIX).unwrap_or(&self.name)
    }
}

impl Io {
    /// What a module takes and gives. Outputs without elements are dropped, as the compiler does.
    ///
    /// # Errors
    /// The module has no entry, types that we do not know, or an alias of what is not there.
    pub fn of(module: &HloModule) -> Result<Self, NeffError> {
        let entry = entry(module).ok_or_else(|| wrong("it has no entry computation"))?;
        let root = entry
            .instructions
            .iter()
            .find(|one| one.id == entry.root_id);
        let root = root.ok_or_else(|| wrong("its entry has no root"))?;
        let mut io = Self {
            inputs: inputs(entry)?,
            outputs: outputs(root)?,
        };
        io.join(module)?;
        Ok(io)
    }

    /// Notes which inputs are which outputs.
    fn join(&mut self, module: &HloModule) -> Result<(), NeffError> {
        let entries = module.input_output_alias.as_ref();
        for entry in entries.map_or(&[][..], |alias| &alias.entries) {
            let output = match entry.output_shape_index.as_slice() {
                [] => Some(0),
                [index] => usize::try_from(*index).ok(),
                _ => None,
            };
            let input = usize::try_from(entry.parameter_number).ok();
            let (Some(output), Some(input)) = (output, input) else {
                return Err(wrong(&format!("its alias {entry:?} points nowhere")));
            };
            let sizes = (
                self.inputs.get(input).map(Binding::bytes),
                self.outputs.get(output).map(Binding::bytes),
            );
            if sizes.0.is_none() || sizes.0 != sizes.1 {
                return Err(wrong(&format!(
                    "input {input} and output {output} shall share memory, but take {:?} and {:?} \
                     bytes",
                    sizes.0, sizes.1
                )));
            }
            if entry.kind != MUST_ALIAS {
                return Err(wrong(&format!(
                    "the alias of input {input} and output {output} is of kind {}, not MUST_ALIAS",
                    entry.kind
                )));
            }
            self.inputs[input].alias = Some(output);
            self.outputs[output].alias = Some(input);
        }
        Ok(())
    }
}

fn wrong(what: &str) -> NeffError {
    NeffError::Module(what.to_owned())
}

fn entry(module: &HloModule) -> Option<&HloComputation> {
    let mut computations = module.computations.iter();
    computations.find(|one| one.id == module.entry_computation_id)
}

fn bytes_of(shape: &Shape) -> u64 {
    if shape.element_type == TUPLE {
        return shape.tuple_shapes.iter().map(bytes_of).sum();
    }
    let element = Element::from_number(shape.element_type).map_or(0, Element::bytes);
    let sizes = shape.dimensions.iter();
    sizes
        .map(|size| u64::try_from(*size).unwrap_or(0))
        .product::<u64>()
        * element
}

fn inputs(entry: &HloComputation) -> Result<Vec<Binding>, NeffError> {
    let parameters = entry
        .instructions
        .iter()
        .filter(|one| one.opcode == "parameter");
    let mut found = BTreeMap::new();
    for parameter in parameters {
        let number = parameter.parameter_number;
        let name = attribute(parameter, INPUT_NAMES).unwrap_or_else(|| format!("input{number}"));
        found.insert(number, binding(name, parameter.shape.as_ref())?);
    }
    if found.keys().zip(0..).any(|(number, at)| *number != at) {
        let numbers: Vec<_> = found.keys().collect();
        return Err(wrong(&format!("its parameters are numbered {numbers:?}")));
    }
    Ok(found.into_values().collect())
}

fn outputs(root: &HloInstruction) -> Result<Vec<Binding>, NeffError> {
    let shape = root
        .shape
        .as_ref()
        .ok_or_else(|| wrong("its root has no shape"))?;
    let shapes = match shape.element_type {
        TUPLE => shape.tuple_shapes.as_slice(),
        _ => std::slice::from_ref(shape),
    };
    let names = attribute(root, OUTPUT_NAMES);
    let names: Vec<_> = names.iter().flat_map(|names| names.split(',')).collect();
    if !names.is_empty() && names.len() != shapes.len() {
        let (names, results) = (names.len(), shapes.len());
        return Err(wrong(&format!(
            "its root names {names} of {results} results"
        )));
    }
    let named = shapes.iter().enumerate().map(|(index, shape)| {
        let name = names.get(index).map(|name| name.trim().to_owned());
        binding(
            name.unwrap_or_else(|| format!("output{index}")),
            Some(shape),
        )
    });
    named.collect()
}

fn attribute(instruction: &HloInstruction, key: &str) -> Option<String> {
    let attributes = instruction.frontend_attributes.as_ref()?;
    attributes.map.get(key).cloned()
}

fn binding(name: String, shape: Option<&Shape>) -> Result<Binding, NeffError> {
    let shape = shape.ok_or_else(|| wrong(&format!("{name} has no shape")))?;
    let number = shape.element_type;
    let element = Element::from_number(number)
        .ok_or_else(|| wrong(&format!("{name} has elements of XLA's type {number}")))?;
    let sizes = shape.dimensions.iter().map(|size| u64::try_from(*size));
    let sizes: Result<Vec<_>, _> = sizes.collect();
    let shape = sizes.map_err(|_| wrong(&format!("{name} has a negative size")))?;
    if shape.contains(&0) {
        return Err(wrong(&format!(
            "{name} has no elements: the compiler would drop it"
        )));
    }
    if name.is_empty() || name.len() >= 256 {
        return Err(wrong(&format!("{name:?} is no name of 1 to 255 bytes")));
    }
    Ok(Binding {
        name,
        shape,
        element,
        alias: None,
    })
}

/// The fields of the header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Of the package: 2.
    pub package: u64,
    /// Bytes after the header.
    pub data_size: u64,
    /// Of the format: major, minor.
    pub version: (u64, u64),
    /// The compiler's version.
    pub build: String,
    /// Logical cores that one copy takes.
    pub cores: u32,
    /// SHA-256 of what follows the header.
    pub hash: [u8; 32],
    /// Unique for each module.
    pub uuid: [u8; 16],
    /// A short name.
    pub name: String,
    /// Logical cores that all ranks take.
    pub requested_cores: u32,
    /// What a runtime must know to run it.
    pub features: u64,
    /// Physical cores of a logical one.
    pub lnc: u32,
}

impl Header {
    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, field: &[u8], room: usize| {
            let length = field.len().min(room);
            bytes[at..at + length].copy_from_slice(&field[..length]);
        };
        put(place::PACKAGE, &self.package.to_le_bytes(), 8);
        put(place::HEADER_SIZE, &(HEADER as u64).to_le_bytes(), 8);
        put(place::DATA_SIZE, &self.data_size.to_le_bytes(), 8);
        put(place::MAJOR, &self.version.0.to_le_bytes(), 8);
        put(place::MINOR, &self.version.1.to_le_bytes(), 8);
        put(place::BUILD, self.build.as_bytes(), 127);
        put(place::CORES, &self.cores.to_le_bytes(), 4);
        put(place::HASH, &self.hash, 32);
        put(place::UUID, &self.uuid, 16);
        put(place::NAME, self.name.as_bytes(), 255);
        put(place::REQUESTED, &self.requested_cores.to_le_bytes(), 4);
        put(
            place::PER_NODE,
            &[u8::try_from(self.cores).unwrap_or(u8::MAX)],
            1,
        );
        put(place::FEATURES, &self.features.to_le_bytes(), 8);
        put(place::LNC, &self.lnc.to_le_bytes(), 4);
        bytes
    }

    /// Reads the first [`HEADER`] bytes of a NEFF.
    ///
    /// # Errors
    /// There are fewer, or a field is not what it must be. Versions are not judged here.
    pub fn from_bytes(neff: &[u8]) -> Result<Self, NeffError> {
        let size = neff.len() as u64;
        let expected = HEADER as u64;
        let Some(bytes) = neff.first_chunk::<HEADER>() else {
            return Err(NeffError::Size { size, expected });
        };
        let header_size = long(bytes, place::HEADER_SIZE);
        if header_size != expected {
            let what = format!("it is {header_size} bytes, not {expected}");
            return Err(NeffError::Header(what));
        }
        if bytes[place::END..].iter().any(|byte| *byte != 0) {
            return Err(NeffError::Header("its padding is not zero".to_owned()));
        }
        Ok(Self {
            package: long(bytes, place::PACKAGE),
            data_size: long(bytes, place::DATA_SIZE),
            version: (long(bytes, place::MAJOR), long(bytes, place::MINOR)),
            build: text(&bytes[place::BUILD..place::CORES])?,
            cores: word(bytes, place::CORES),
            hash: part(bytes, place::HASH),
            uuid: part(bytes, place::UUID),
            name: text(&bytes[place::NAME..place::REQUESTED])?,
            requested_cores: word(bytes, place::REQUESTED),
            features: long(bytes, place::FEATURES),
            lnc: word(bytes, place::LNC),
        })
    }
}

fn part<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

fn long(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(part(bytes, at))
}

fn word(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(part(bytes, at))
}

fn text(field: &[u8]) -> Result<String, NeffError> {
    let end = field.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| NeffError::Header("a name does not end".to_owned()))?;
    let text = std::str::from_utf8(&field[..end]);
    let text = text.map_err(|_| NeffError::Header("a name is no UTF-8".to_owned()))?;
    Ok(text.to_owned())
}

/// A NEFF: what is in the file.
#[derive(Clone, PartialEq, Debug)]
pub struct Neff {
    /// The header.
    pub header: Header,
    /// What the compiler says.
    pub info: Info,
    /// What it takes and gives.
    pub io: Io,
    /// The module's bytes.
    pub module: Vec<u8>,
    /// What XLA made of the module.
    pub compiled: Option<Compiled>,
}

impl Neff {
    /// The bytes of a NEFF of `module` alone. The same module and info have the same bytes.
    ///
    /// # Errors
    /// The module is none that a NEFF can be made of; see [`Io::of`].
    pub fn write(module: &HloModule, info: &Info) -> Result<Vec<u8>, NeffError> {
        Self::write_with(module, info, None)
    }

    /// The bytes of a NEFF of `module` and of what XLA made of it, if that is there.
    ///
    /// # Errors
    /// The module is none that a NEFF can be made of; see [`Io::of`].
    pub fn write_with(
        module: &HloModule,
        info: &Info,
        compiled: Option<&Compiled>,
    ) -> Result<Vec<u8>, NeffError> {
        let io = Io::of(module)?;
        let hlo = module.to_bytes();
        let data = archive(info, &io, &hlo, compiled);
        let data = data.map_err(|error| NeffError::Archive(error.to_string()))?;
        let digest = Sha256::digest(&hlo);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest[..16]);
        let mut hash = [0; 32];
        hash.copy_from_slice(&Sha256::digest(&data));
        let header = Header {
            package: 2,
            data_size: data.len() as u64,
            version: VERSION,
            build: info.compiler.clone(),
            cores: 1,
            hash,
            uuid,
            name: module.name.clone(),
            requested_cores: info.ranks,
            features: 1,
            lnc: info.lnc,
        };
        let mut neff = header.to_bytes().to_vec();
        neff.extend_from_slice(&data);
        Ok(neff)
    }

    /// Reads and checks a NEFF. Whether it is for this device is for the caller to see.
    ///
    /// # Errors
    /// See [`NeffError`].
    pub fn read(bytes: &[u8]) -> Result<Self, NeffError> {
        let header = Header::from_bytes(bytes)?;
        let version = header.version;
        if version != VERSION || header.features & !FEATURES != 0 {
            let features = header.features;
            return Err(NeffError::Version { version, features });
        }
        let data = &bytes[HEADER..];
        if data.len() as u64 != header.data_size {
            return Err(NeffError::Size {
                size: bytes.len() as u64,
                expected: header.data_size.saturating_add(HEADER as u64),
            });
        }
        if Sha256::digest(data)[..] != header.hash {
            return Err(NeffError::Hash);
        }
        let mut files = unpack(data).map_err(|error| NeffError::Archive(error.to_string()))?;
        let InfoFile { info, xla } = parse(&files, "info.json")?;
        let io = parse(&files, "io.json")?;
        let module = files.remove("hlo.pb");
        let module = module.ok_or_else(|| NeffError::Archive("it has no hlo.pb".to_owned()))?;
        if (info.lnc, info.ranks) != (header.lnc, header.requested_cores) {
            return Err(NeffError::Header("it contradicts info.json".to_owned()));
        }
        Ok(Self {
            header,
            info,
            io,
            module,
            compiled: xla
                .zip(files.remove("xla.bin"))
                .map(|(key, program)| Compiled { key, program }),
        })
    }
}

fn parse<T: for<'de> Deserialize<'de>>(
    files: &BTreeMap<String, Vec<u8>>,
    name: &str,
) -> Result<T, NeffError> {
    let file = files.get(name);
    let file = file.ok_or_else(|| NeffError::Archive(format!("it has no {name}")))?;
    serde_json::from_slice(file).map_err(|error| NeffError::Archive(format!("{name}: {error}")))
}

fn archive(
    info: &Info,
    io: &Io,
    hlo: &[u8],
    compiled: Option<&Compiled>,
) -> std::io::Result<Vec<u8>> {
    let info = InfoFile {
        info: info.clone(),
        xla: compiled.map(|compiled| compiled.key.clone()),
    };
    let files = [
        ("info.json", serde_json::to_vec_pretty(&info)?),
        ("io.json", serde_json::to_vec_pretty(io)?),
        ("hlo.pb", hlo.to_vec()),
    ];
    let program = compiled.map(|compiled| ("xla.bin", compiled.program.clone()));
    let files = files.into_iter().chain(program);
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, contents.as_slice())?;
    }
    let mut gzip = tar.into_inner()?;
    gzip.flush()?;
    gzip.finish()
}

fn unpack(data: &[u8]) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(data)).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents)?;
        files.insert(name, contents);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn neff() -> Vec<u8> {
        Neff::write(&sample::counter("counter", 2), &sample::info("trn2", 2, 2)).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let neff = Neff::read(&neff()).unwrap();
        assert_eq!(neff.info, sample::info("trn2", 2, 2));
        assert_eq!((neff.header.name.as_str(), neff.header.lnc), ("counter", 2));
        let module = HloModule::from_bytes(&neff.module).unwrap();
        assert_eq!(module, sample::counter("counter", 2));
        assert_eq!(Io::of(&module).unwrap(), neff.io);
        let names: Vec<_> = neff
            .io
            .inputs
            .iter()
            .map(|input| input.name.as_str())
            .collect();
        assert_eq!(names, ["x", "state.must_alias_input"]);
        assert_eq!(
            (neff.io.inputs[1].alias, neff.io.outputs[1].alias),
            (Some(1), Some(1))
        );
        assert_eq!(neff.io.outputs[0].bytes(), 16);
    }

    #[test]
    fn a_program_of_xla_is_carried_with_its_key() {
        let compiled = Compiled {
            key: "a key".to_owned(),
            program: vec![1, 2, 3],
        };
        let (module, info) = (sample::counter("counter", 2), sample::info("trn2", 2, 2));
        let with = Neff::write_with(&module, &info, Some(&compiled)).unwrap();
        let read = Neff::read(&with).unwrap();
        assert_eq!((read.info, read.compiled), (info, Some(compiled)));
        assert_eq!(Neff::read(&neff()).unwrap().compiled, None);
    }

    #[test]
    fn the_same_module_has_the_same_bytes() {
        assert_eq!(neff(), neff());
    }

    #[test]
    fn a_damaged_neff_is_refused_with_its_status() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = neff();
            change(&mut bytes);
            Neff::read(&bytes).unwrap_err().status().0
        };
        assert_eq!(refused(&|bytes| bytes.truncate(100)), 2);
        assert_eq!(
            refused(&|bytes| bytes.truncate(2000.min(bytes.len() - 1))),
            2
        );
        assert_eq!(refused(&|bytes| bytes.push(0)), 2);
        assert_eq!(refused(&|bytes| bytes[place::HEADER_SIZE] = 7), 2);
        assert_eq!(refused(&|bytes| bytes[HEADER + 100] ^= 1), 2);
        assert_eq!(refused(&|bytes| bytes[place::HASH] ^= 1), 2);
        assert_eq!(refused(&|bytes| bytes[place::LNC] = 1), 2);
        assert_eq!(refused(&|bytes| bytes[1000] = 1), 2);
        assert_eq!(refused(&|bytes| bytes[place::MAJOR] = 3), 10);
        assert_eq!(refused(&|bytes| bytes[place::FEATURES + 1] = 1), 10);
    }

    #[test]
    fn a_module_that_makes_no_neff_is_refused() {
        let refused = |change: &dyn Fn(&mut HloModule)| {
            let mut module = sample::counter("counter", 1);
            change(&mut module);
            Io::of(&module).unwrap_err().to_string()
        };
        let kind =
            refused(&|module| module.input_output_alias.as_mut().unwrap().entries[0].kind = 0);
        assert!(kind.contains("MUST_ALIAS"), "{kind}");
        let entry = refused(&|module| module.entry_computation_id = 9);
        assert!(entry.contains("entry"), "{entry}");
        let gap = refused(&|module| module.computations[1].instructions[0].parameter_number = 5);
        assert!(gap.contains("numbered"), "{gap}");
    }

    #[test]
    fn without_attributes_names_are_numbers() {
        let mut module = sample::counter("counter", 1);
        for instruction in &mut module.computations[1].instructions {
            instruction.frontend_attributes = None;
        }
        let io = Io::of(&module).unwrap();
        assert_eq!(
            (io.inputs[1].name.as_str(), io.outputs[0].name.as_str()),
            ("input1", "output0")
        );
    }
}
