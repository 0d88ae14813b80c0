//! A protobuf message inside a JSON record: kept byte for byte as the client sent it (unknown
//! fields aside), so that configs, labels and annotations come back unedited.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A message stored as base64 of its encoding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored<M>(pub M);

impl<M: Message> Serialize for Stored<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0.encode_to_vec()))
    }
}

impl<'de, M: Message + Default> Deserialize<'de> for Stored<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice())
            .map(Stored)
            .map_err(D::Error::custom)
    }
}

impl<M> std::ops::Deref for Stored<M> {
    type Target = M;
    fn deref(&self) -> &M {
        &self.0
    }
}
