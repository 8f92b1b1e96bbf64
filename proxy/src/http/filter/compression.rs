//! Compression of bodies: the libraries (gzip, brotli, zstd) that the filters [`compressor`] and [`decompressor`] share.

pub(crate) mod compressor;
pub(crate) mod decompressor;

use std::io::{self, Write};

use bytes::Bytes;
use prost_types::Any;
use proto::envoy::config::core::v3::TypedExtensionConfig;
use proto::envoy::extensions::compression as wire;
use wire::gzip::compressor::v3::gzip::CompressionLevel;

use crate::{http::stream::Stream, invalid::Invalid};

/// A library for compressing, with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Library {
    Gzip { level: u32 },
    Brotli { quality: u32, window: u32 },
    Zstd { level: i32, has_checksum: bool },
}

/// A compressor at work.
enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

/// A decompressor at work.
enum Decoder {
    Gzip(flate2::write::GzDecoder<Vec<u8>>),
    Brotli(Box<brotli::DecompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Decoder<'static, Vec<u8>>),
}

/// What a library is called, in configurations, headers and statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gzip,
    Brotli,
    Zstd,
}

impl Kind {
    /// The word in `content-encoding`.
    fn coding(self) -> &'static str {
        match self {
            Kind::Gzip => "gzip",
            Kind::Brotli => "br",
            Kind::Zstd => "zstd",
        }
    }

    /// The word in statistics.
    fn name(self) -> &'static str {
        match self {
            Kind::Gzip => "gzip",
            Kind::Brotli => "brotli",
            Kind::Zstd => "zstd",
        }
    }
}

fn typed(library: Option<&TypedExtensionConfig>) -> Result<(&str, Any), Invalid> {
    let library = library.ok_or_else(|| Invalid::new("a library is needed"))?;
    let any = library.typed_config.clone();
    let any = any.ok_or_else(|| Invalid::new("typed_config is needed"))?;
    Ok((&library.name, any))
}

impl Library {
    fn try_new(any: &Any) -> Result<Self, Invalid> {
        let prefix = "envoy.extensions.compression.";
        let message = proto::type_url::message_name(&any.type_url);
        match message.strip_prefix(prefix) {
            Some("gzip.compressor.v3.Gzip") => {
                let config: wire::gzip::compressor::v3::Gzip = proto::any::unpack(any)?;
                let level = match config.compression_level() {
                    CompressionLevel::DefaultCompression => 6,
                    level => u32::try_from(level as i32).unwrap_or(6),
                };
                Ok(Library::Gzip { level })
            }
            Some("brotli.compressor.v3.Brotli") => {
                let config: wire::brotli::compressor::v3::Brotli = proto::any::unpack(any)?;
                let quality = config.quality.unwrap_or(3);
                let window = config.window_bits.unwrap_or(18);
                if quality > 11 {
                    return Err(Invalid::new("quality must not be greater than 11"));
                }
                if !(10..=24).contains(&window) {
                    return Err(Invalid::new("window_bits must be in 10..=24"));
                }
                Ok(Library::Brotli { quality, window })
            }
            Some("zstd.compressor.v3.Zstd") => {
                let config: wire::zstd::compressor::v3::Zstd = proto::any::unpack(any)?;
                if config.dictionary.is_some() {
                    return Err(Invalid::unsupported("dictionary"));
                }
                let level = config.compression_level.unwrap_or(3).min(22);
                Ok(Library::Zstd {
                    level: i32::try_from(level).unwrap_or(3),
                    has_checksum: config.enable_checksum,
                })
            }
            _ => Err(Invalid::unsupported(&format!(
                "compressor library {message}"
            ))),
        }
    }

    fn kind(self) -> Kind {
        match self {
            Library::Gzip { .. } => Kind::Gzip,
            Library::Brotli { .. } => Kind::Brotli,
            Library::Zstd { .. } => Kind::Zstd,
        }
    }

    fn encoder(self) -> io::Result<Encoder> {
        Ok(match self {
            Library::Gzip { level } => Encoder::Gzip(flate2::write::GzEncoder::new(
                Vec::new(),
                flate2::Compression::new(level),
            )),
            Library::Brotli { quality, window } => Encoder::Brotli(Box::new(
                brotli::CompressorWriter::new(Vec::new(), 4096, quality, window),
            )),
            Library::Zstd {
                level,
                has_checksum,
            } => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level)?;
                encoder.include_checksum(has_checksum)?;
                Encoder::Zstd(encoder)
            }
        })
    }
}

impl Encoder {
    /// A piece, compressed so far that the other side can read all of it.
    fn piece(&mut self, data: &[u8]) -> io::Result<Bytes> {
        let out = match self {
            Encoder::Gzip(encoder) => {
                encoder.write_all(data)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Encoder::Brotli(encoder) => {
                encoder.write_all(data)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Encoder::Zstd(encoder) => {
                encoder.write_all(data)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
        };
        Ok(out.into())
    }

    /// The end.
    fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Brotli(encoder) => encoder.into_inner(),
            Encoder::Zstd(encoder) => encoder.finish()?,
        }
        .into())
    }
}

impl Decoder {
    fn try_new(kind: Kind) -> io::Result<Self> {
        Ok(match kind {
            Kind::Gzip => Decoder::Gzip(flate2::write::GzDecoder::new(Vec::new())),
            Kind::Brotli => {
                Decoder::Brotli(Box::new(brotli::DecompressorWriter::new(Vec::new(), 4096)))
            }
            Kind::Zstd => Decoder::Zstd(zstd::stream::write::Decoder::new(Vec::new())?),
        })
    }

    /// What a piece stands for.
    fn piece(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        Ok(match self {
            Decoder::Gzip(decoder) => {
                decoder.write_all(data)?;
                decoder.flush()?;
                std::mem::take(decoder.get_mut())
            }
            Decoder::Brotli(decoder) => {
                decoder.write_all(data)?;
                decoder.flush()?;
                std::mem::take(decoder.get_mut())
            }
            Decoder::Zstd(decoder) => {
                decoder.write_all(data)?;
                decoder.flush()?;
                std::mem::take(decoder.get_mut())
            }
        })
    }
}

/// Whether a header that lists words with commas has one of them.
fn has_word(map: &http::HeaderMap, name: &http::HeaderName, wanted: &str) -> bool {
    map.get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(wanted))
}

/// Whether there is something to work on: a body that is still to come, or one that a filter has waited for.
fn has_request_body(stream: &Stream) -> bool {
    let info = &stream.info;
    match info.brought {
        Some(bytes) => bytes > 0,
        None => info.request_end.is_none() || info.bytes_received > 0,
    }
}

/// The filter's statistics are named by the library.
fn check_name(name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::new("a name is needed").at("name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_gives_back_what_it_got() {
        let libraries = [
            Library::Gzip { level: 6 },
            Library::Brotli {
                quality: 3,
                window: 18,
            },
            Library::Zstd {
                level: 3,
                has_checksum: true,
            },
        ];
        for library in libraries {
            let mut encoder = library.encoder().unwrap();
            let mut decoder = Decoder::try_new(library.kind()).unwrap();
            let mut back = Vec::new();
            for piece in [&b"hello "[..], &[b'x'; 5000], b" world"] {
                let packed = encoder.piece(piece).unwrap();
                back.extend(decoder.piece(&packed).unwrap());
            }
            back.extend(decoder.piece(&encoder.finish().unwrap()).unwrap());
            assert_eq!(back.len(), 5012, "{library:?}");
            assert!(back.starts_with(b"hello x") && back.ends_with(b"x world"));
        }
    }

    #[test]
    fn rubbish_is_an_error() {
        for kind in [Kind::Gzip, Kind::Brotli, Kind::Zstd] {
            let mut decoder = Decoder::try_new(kind).unwrap();
            assert!(decoder.piece(&[0xff; 64]).is_err(), "{kind:?}");
        }
    }
}
