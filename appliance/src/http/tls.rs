//! TLS: the certificate and its key, read from PEM files and again when they change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::Resolved;
use crate::stamp::{LOOK, Watched};

/// How long a client may take until both have agreed on keys.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What both sides may speak, the better first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What a path begins with that systemd's `LoadCredential=` gives.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {why}")]
    Read {
        /// The setting tls-certificate or tls-key.
        path: PathBuf,
        /// What the host said.
        why: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no {what} in PEM: {why}")]
    Pem {
        /// The setting tls-certificate or tls-key.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The key needs a passphrase.
    #[error(
        "the key in {path} is encrypted, as ACM exports it: decrypt it where only root reads it, with \
         `openssl pkey -in {path} -out KEY.pem`, and set tls-key to that"
    )]
    Encrypted {
        /// The setting tls-key.
        path: PathBuf,
    },
    /// The two do not belong together, or are of a kind that rustls does not know.
    #[error("the certificate in {certificate} does not go with the key in {key}: {why}")]
    Mismatch {
        /// The setting tls-certificate.
        certificate: PathBuf,
        /// The setting tls-key.
        key: PathBuf,
        /// What is wrong with them.
        why: rustls::Error,
    },
    /// There are no such rules.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Where a certificate and its key lie.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// How connections become private. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    files: Files,
    current: Arc<Current>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// The certificate that new connections are shown.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

impl Tls {
    /// What the settings want; `None` if they want none.
    ///
    /// # Errors
    /// The files are no good.
    pub(crate) fn open(settings: &Resolved) -> Result<Option<Self>, TlsError> {
        let (Some(certificate), Some(key)) = (&settings.tls_certificate, &settings.tls_key) else {
            return Ok(None);
        };
        let files = Files {
            certificate: in_credentials(certificate),
            key: in_credentials(key),
        };
        let provider = Arc::new(ring::default_provider());
        let current = files.read(&provider)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(current))));
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&current) as _;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(Some(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            files,
            current,
        }))
    }

    /// Agrees with a client on keys.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let accepted = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await;
        accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Reads the files again when they change, for ever. What is no good changes nothing.
    pub(super) async fn follow(self) {
        let mut watched = Watched::default();
        loop {
            let files = vec![self.files.certificate.clone(), self.files.key.clone()];
            if watched.changed(files).await {
                let tls = self.clone();
                // It reads files. Nothing in there panics.
                tokio::task::spawn_blocking(move || tls.renew()).await.ok();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn renew(&self) {
        match self.files.read(&ring::default_provider()) {
            Ok(new) => {
                let mut current = (self.current.0.write()).unwrap_or_else(PoisonError::into_inner);
                *current = Arc::new(new);
                tracing::info!("new connections get the new certificate");
            }
            Err(why) => tracing::error!("{why}; the certificate of before stays"),
        }
    }
}

/// A path below `$CREDENTIALS_DIRECTORY/`, where systemd says that is.
fn in_credentials(path: &Path) -> PathBuf {
    let name = path.strip_prefix(format!("${CREDENTIALS}"));
    match (name, std::env::var_os(CREDENTIALS)) {
        (Ok(name), Some(directory)) => Path::new(&directory).join(name),
        _ => path.to_owned(),
    }
}

impl Files {
    fn read(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|why| TlsError::Read {
                path: path.to_owned(),
                why,
            })
        };
        let pem = |path: &Path, what, why: &dyn std::fmt::Display| TlsError::Pem {
            path: path.to_owned(),
            what,
            why: why.to_string(),
        };
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|why| pem(&self.certificate, "certificates", &why))?;
        if chain.is_empty() {
            return Err(pem(&self.certificate, "certificates", &"there is none"));
        }
        let encrypted = |part: &[u8]| part == b"ENCRYPTED";
        if key.windows(b"ENCRYPTED".len()).any(encrypted) {
            let path = self.key.clone();
            return Err(TlsError::Encrypted { path });
        }
        let key = PrivateKeyDer::from_pem_slice(&key);
        let key = key.map_err(|why| pem(&self.key, "private key", &why))?;
        let key = (provider.key_provider).load_private_key(key);
        let certified = key.and_then(|key| {
            let certified = CertifiedKey::new(chain, key);
            certified.keys_match().map(|()| certified)
        });
        certified.map_err(|why| TlsError::Mismatch {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            why,
        })
    }
}
