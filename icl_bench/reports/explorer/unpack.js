// Unpacks data and program, which stand compressed in the page, and starts the program.
(async () => {
  const unpacked = (id) => {
    const packed = atob(document.getElementById(id).textContent);
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  };
  const [data, program] = await Promise.all(["data", "program"].map(unpacked));
  document.getElementById("data").textContent = data;
  const script = document.createElement("script");
  script.textContent = program; // the policy of the page names it by its digest
  document.getElementById("program").replaceWith(script);
  document.documentElement.dataset.ready = "true";
})().catch((error) => {
  document.getElementById("content").textContent = `This page needs a browser of 2023 or later, which can unpack it (${error.message}).`;
});
