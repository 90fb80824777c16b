//! The little of protobuf that a SentencePiece model needs: the fields of a message, one after the other.

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// Integers, booleans and enums.
    Varint(u64),
    /// Eight bytes.
    Fixed64,
    /// Texts, bytes and messages.
    Bytes(&'a [u8]),
    /// Four bytes: a float.
    Fixed32([u8; 4]),
}

/// The fields of a message, in the order of the file, the unknown ones included. Ends after the first error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of this message.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or("the message ends within a number")?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err("a number has more than 64 bits".into());
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number has more than 10 bytes".into())
    }

    fn bytes(&mut self, len: u64) -> Result<&'a [u8], String> {
        let left = self.rest.len();
        let split = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let (bytes, rest) = split.ok_or_else(|| format!("a field of {len} bytes, and {left} are left"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), String> {
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number >= 1 << 29 {
            return Err(format!("a field has the number {number}"));
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.bytes(8).map(|_| Value::Fixed64)?,
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.bytes(len)?)
            }
            5 => {
                let bytes = self.bytes(4)?;
                Value::Fixed32(*bytes.first_chunk().expect("four bytes were taken"))
            }
            other => return Err(format!("field {number} has the wire type {other}")),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_and_unknown_ones_are_given() {
        let message =
            [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1D, 0, 0, 0x80, 0x3F, 0x21, 1, 2, 3, 4, 5, 6, 7, 8];
        let fields: Vec<_> = Fields::new(&message).collect::<Result<_, _>>().unwrap();
        let one = Value::Fixed32(1f32.to_le_bytes());
        assert_eq!(
            fields,
            [(1, Value::Varint(150)), (2, Value::Bytes(b"hi")), (3, one), (4, Value::Fixed64)]
        );
    }

    #[test]
    fn numbers_end_after_ten_bytes_and_64_bits() {
        let number = |last: u8| [&[0x08], &[0xFF; 9][..], &[last]].concat();
        assert_eq!(Fields::new(&number(1)).next(), Some(Ok((1, Value::Varint(u64::MAX)))));
        for last in [2, 0x81] {
            assert!(Fields::new(&number(last)).next().unwrap().is_err());
        }
    }

    #[test]
    fn broken_messages_are_errors_and_end() {
        let broken: [&[u8]; 6] = [
            &[0x80],
            &[0x12, 5, 1],
            &[0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1],
            &[0x0B],
            &[0x00, 0],
            &[0x0D, 1, 2, 3],
        ];
        for message in broken {
            let mut fields = Fields::new(message);
            assert!(fields.next().unwrap().is_err());
            assert!(fields.next().is_none());
        }
    }
}
