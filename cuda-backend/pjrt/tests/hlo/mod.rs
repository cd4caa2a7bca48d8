//! Modules of HLO for tests, written field by field: `HloModuleProto` of `xla/service/hlo.proto`.

/// Element types, `PrimitiveType` of `xla_data.proto`.
pub(crate) const S32: i64 = 4;
pub(crate) const F32: i64 = 11;
pub(crate) const BF16: i64 = 16;
const TUPLE: i64 = 13;

/// A message under construction.
#[derive(Clone, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.0.push(low & 0x7f);
            }
            self.0.push(low | 0x80);
        }
    }

    pub(crate) fn number(&mut self, field: u64, value: i64) {
        self.varint(field << 3);
        self.varint(value.cast_unsigned());
    }

    pub(crate) fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    pub(crate) fn nested(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

/// The shape of an array in dense layout.
pub(crate) fn array(element: i64, dims: &[i64]) -> Message {
    let mut shape = Message::default();
    shape.number(2, element);
    for size in dims {
        shape.number(3, *size);
    }
    shape.nested(5, |layout| {
        for dim in (0..dims.len()).rev() {
            layout.number(1, dim as i64);
        }
        layout.number(16, 1);
    });
    for _ in dims {
        shape.number(6, 0);
    }
    shape
}

/// The shape of a tuple of two.
pub(crate) fn pair(first: &Message, second: &Message) -> Message {
    let mut shape = Message::default();
    shape.number(2, TUPLE);
    shape.bytes(4, &first.0);
    shape.bytes(4, &second.0);
    shape
}

/// A computation. Its last instruction is its root.
pub(crate) struct Computation {
    name: &'static str,
    instructions: Vec<(Message, Message)>,
    parameters: Vec<Message>,
}

impl Computation {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            instructions: Vec::new(),
            parameters: Vec::new(),
        }
    }

    pub(crate) fn parameter(&mut self, number: i64, shape: &Message) -> i64 {
        self.parameters.push(shape.clone());
        self.op("parameter", shape, &[], |op| op.number(9, number))
    }

    /// Adds an instruction and returns where it stands.
    pub(crate) fn op(
        &mut self,
        opcode: &str,
        shape: &Message,
        operands: &[i64],
        fill: impl FnOnce(&mut Message),
    ) -> i64 {
        let at = self.instructions.len() as i64;
        let base = self.base();
        let mut op = Message::default();
        op.bytes(1, format!("{opcode}.{}", base + at).as_bytes());
        op.bytes(2, opcode.as_bytes());
        op.bytes(3, &shape.0);
        op.number(35, base + at);
        for operand in operands {
            op.number(36, base + operand);
        }
        fill(&mut op);
        self.instructions.push((op, shape.clone()));
        at
    }

    /// The id of its first instruction: ids are unique in a module.
    fn base(&self) -> i64 {
        if self.name == "main" { 100 } else { 1 }
    }

    fn message(&self, id: i64) -> Message {
        let mut computation = Message::default();
        computation.bytes(1, self.name.as_bytes());
        for (op, _) in &self.instructions {
            computation.bytes(2, &op.0);
        }
        computation.nested(4, |shape| self.program_shape(shape));
        computation.number(5, id);
        computation.number(6, self.base() + self.instructions.len() as i64 - 1);
        computation
    }

    fn program_shape(&self, shape: &mut Message) {
        for (number, parameter) in self.parameters.iter().enumerate() {
            shape.bytes(1, &parameter.0);
            shape.bytes(3, format!("p{number}").as_bytes());
        }
        if let Some((_, root)) = self.instructions.last() {
            shape.bytes(2, &root.0);
        }
    }
}

/// A computation that adds two floats, for collectives.
pub(crate) fn adder() -> Computation {
    let scalar = array(F32, &[]);
    let mut adder = Computation::new("adder");
    let left = adder.parameter(0, &scalar);
    let right = adder.parameter(1, &scalar);
    adder.op("add", &scalar, &[left, right], |_| ());
    adder
}

/// Output `output` of the root's tuple lies in the memory of parameter `parameter`.
pub(crate) fn alias(output: i64, parameter: i64) -> Message {
    let mut entry = Message::default();
    entry.number(1, output);
    entry.number(2, parameter);
    entry.number(4, 2);
    entry
}

/// A module. The last computation is run; they have the ids 1, 2, ..
pub(crate) fn module(computations: &[Computation], aliases: &[Message]) -> Vec<u8> {
    let mut module = Message::default();
    module.bytes(1, b"module");
    module.bytes(2, b"main");
    for (at, computation) in computations.iter().enumerate() {
        module.bytes(3, &computation.message(at as i64 + 1).0);
    }
    if let Some(main) = computations.last() {
        module.nested(4, |shape| main.program_shape(shape));
    }
    module.number(5, 1);
    module.number(6, computations.len() as i64);
    module.nested(8, |all| {
        for alias in aliases {
            all.bytes(1, &alias.0);
        }
    });
    module.0
}
