//! Certificates and kubeconfigs of one cluster: an authority, what it issues, and the files that carry both.

use anyhow::{Context, Result};
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A certificate authority, in memory only: what it issues is written down, its key never is.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key, PKCS#8.
    pub key: String,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?,
        })
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate for clients and servers. The API server reads the common name as the user and the
    /// organization as the group.
    ///
    /// # Errors
    /// When a name is not one, or the key cannot be made.
    pub fn issue(&self, common_name: &str, organization: Option<&str>, names: &[&str]) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).context("subject alternative names")?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A self-contained kubeconfig (no file references, no plugins).
    pub fn kubeconfig(&self, cluster: &str, server: &str, identity: &Identity) -> String {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {cluster}\n\
             clusters:\n- name: {cluster}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
             users:\n- name: {cluster}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
             contexts:\n- name: {cluster}\n  context:\n    cluster: {cluster}\n    user: {cluster}\n",
            ca = encode(&self.certificate()),
            certificate = encode(&identity.certificate),
            key = encode(&identity.key),
        )
    }
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<()> {
        write_private(&dir.join(format!("{name}.crt")), &self.certificate)?;
        write_private(&dir.join(format!("{name}.key")), &self.key)
    }
}

/// Writes the key pair that signs and proves ServiceAccount tokens: `token.key` and `token.pub`.
///
/// # Errors
/// When the key cannot be made or written.
pub fn write_token_key(dir: &Path) -> Result<()> {
    let pair = KeyPair::generate()?;
    write_private(&dir.join("token.key"), &pair.serialize_pem())?;
    write_private(&dir.join("token.pub"), &pair.public_key_pem())
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
