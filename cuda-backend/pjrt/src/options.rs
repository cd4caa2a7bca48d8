//! Options of clients and compilations, and the messages that carry them.

/// The value of an option.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Text.
    Text(String),
    /// An integer.
    Integer(i64),
    /// A float.
    Float(f32),
    /// A truth.
    Truth(bool),
}

/// How a program is compiled.
#[derive(Clone, PartialEq, Debug)]
pub struct CompileOptions {
    /// Copies of the program that run together, each on a device of its own.
    pub replicas: u32,
    /// Parts that each copy is cut into, each on a device of its own.
    pub partitions: u32,
    /// The number of the device of each copy of each part: the copies of the first part, then those
    /// of the next. Without: the client's first devices.
    pub devices: Option<Vec<i32>>,
    /// Overrides of XLA's flags by their names without dashes, such as
    /// `xla_allow_excess_precision`.
    pub flags: Vec<(String, Value)>,
}

impl Default for CompileOptions {
    /// One copy in one part.
    fn default() -> Self {
        Self {
            replicas: 1,
            partitions: 1,
            devices: None,
            flags: Vec::new(),
        }
    }
}

impl CompileOptions {
    /// Devices that the program runs on.
    pub fn device_count(&self) -> usize {
        self.replicas as usize * self.partitions as usize
    }

    /// The same with one of XLA's flags set.
    #[must_use]
    pub fn flag(mut self, name: &str, value: Value) -> Self {
        self.flags.push((name.to_owned(), value));
        self
    }

    /// A `CompileOptionsProto` (`xla/pjrt/proto/compile_options.proto`) for a program on `devices`.
    pub(crate) fn to_bytes(&self, devices: &[i32]) -> Vec<u8> {
        let mut build = Message::default();
        build.integer(4, self.replicas.into());
        build.integer(5, self.partitions.into());
        build.message(9, &self.assignment(devices));
        let mut options = Message::default();
        options.message(3, &build);
        for (name, value) in &self.flags {
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, &flag(value));
            options.message(7, &entry);
        }
        options.bytes
    }

    /// A `DeviceAssignmentProto` (`xla/xla_data.proto`).
    fn assignment(&self, devices: &[i32]) -> Message {
        let mut assignment = Message::default();
        assignment.integer(1, self.replicas.into());
        assignment.integer(2, self.partitions.into());
        for part in devices.chunks(self.replicas.max(1) as usize) {
            let mut computation = Message::default();
            for device in part {
                computation.integer(1, (*device).into());
            }
            assignment.message(3, &computation);
        }
        assignment
    }
}

/// An `OptionOverrideProto`.
fn flag(value: &Value) -> Message {
    let mut message = Message::default();
    match value {
        Value::Text(text) => message.bytes(1, text.as_bytes()),
        Value::Truth(truth) => message.integer(2, (*truth).into()),
        Value::Integer(integer) => message.integer(3, *integer),
        Value::Float(float) => message.double(4, (*float).into()),
    }
    message
}

/// A message of protocol buffers, written field by field.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn integer(&mut self, field: u8, value: i64) {
        self.bytes.push(field << 3);
        self.varint(value.cast_unsigned());
    }

    fn double(&mut self, field: u8, value: f64) {
        self.bytes.push(field << 3 | 1);
        self.bytes.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u8, value: &[u8]) {
        self.bytes.push(field << 3 | 2);
        self.varint(value.len() as u64);
        self.bytes.extend(value);
    }

    fn message(&mut self, field: u8, value: &Message) {
        self.bytes(field, &value.bytes);
    }

    fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.bytes.push(low & 0x7f);
            }
            self.bytes.push(low | 0x80);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_part_by_part() {
        let options = CompileOptions {
            replicas: 2,
            ..CompileOptions::default()
        };
        let assignment = [0x08, 2, 0x10, 1, 0x1a, 5, 0x08, 0xac, 0x02, 0x08, 5];
        let mut expected = vec![0x1a, 17, 0x20, 2, 0x28, 1, 0x4a, 11];
        expected.extend(assignment);
        assert_eq!(options.to_bytes(&[300, 5]), expected);
    }

    #[test]
    fn a_flag_is_an_entry_of_a_map() {
        let options = CompileOptions::default().flag("ab", Value::Truth(false));
        let mut expected = vec![0x1a, 14, 0x20, 1, 0x28, 1, 0x4a, 8];
        expected.extend([0x08, 1, 0x10, 1, 0x1a, 2, 0x08, 0]);
        expected.extend([0x3a, 8, 0x0a, 2, b'a', b'b', 0x12, 2, 0x10, 0]);
        assert_eq!(options.to_bytes(&[0]), expected);
    }
}
